"""Who may import whom: downwards only, gin in few files, and `import redi` takes nothing heavy along."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the lowest layer up. Folders in one layer do not import each other; programs, above all layers, import any.
LAYERS = [
    "runtime",
    "core",
    "fusion guidance",
    "models",
    "data sampling",
    "training evaluation",
    "pages",
    "runs",
    "sweeps",
]
LAYER = {folder: number for number, folders in enumerate(LAYERS) for folder in folders.split()}
GIN_FILES = {
    "core.registry", "core.config", "core.gin_errors", "core.gin_files", "core.literals", "runtime.trusted_imports",
}  # fmt: skip
HEAVY = {"torch", "diffusers", "transformers", "xformers", "timm"}

FILES = {
    ".".join(file.relative_to(ROOT / "redi").with_suffix("").parts).removesuffix("__init__").removesuffix("."): file
    for file in sorted((ROOT / "redi").rglob("*.py"))
}


def folder_of(module: str) -> str:
    """The top folder of a module (named without `redi.`); of a program, which lies in none, its own name."""
    return module.split(".")[0]


def layer_of(module: str) -> int:
    return LAYER.get(folder_of(module), len(LAYERS))


def allowed(importer: str, imported: str) -> bool:
    if imported == "" or folder_of(importer) == folder_of(imported):  # `from redi import __version__`
        return True
    return layer_of(imported) < layer_of(importer) or (layer_of(importer) == len(LAYERS) and imported == "command_line")


def imports(module: str) -> Iterator[str]:
    """Full names of everything that a module imports, in functions and under TYPE_CHECKING too."""
    package = ["redi", *module.split(".")] if module else ["redi"]
    if FILES[module].name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # a submodule, or a name inside of `base`
                inner = f"{base}.{alias.name}"
                yield inner if inner.removeprefix("redi.") in FILES else base


def own_imports(module: str) -> set[str]:
    """The modules of the library that a module imports, named without `redi.`."""
    return {name.removeprefix("redi").removeprefix(".") for name in imports(module) if name.split(".")[0] == "redi"}


def test_every_folder_has_its_layer():
    assert {folder_of(name) for name, file in FILES.items() if file.parent != ROOT / "redi"} == set(LAYER)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_downwards(module):
    assert [f"redi.{name}" for name in sorted(own_imports(module)) if not allowed(module, name)] == []


def test_no_files_import_one_another_in_a_circle():
    graph = {module: own_imports(module) - {"", module} for module in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_no_folders_import_one_another_in_a_circle():
    folders = {module: module.rpartition(".")[0] if FILES[module].name != "__init__.py" else module for module in FILES}
    graph: dict[str, set[str]] = {}
    for module in FILES:
        inner = {folders[name] for name in own_imports(module) if name}
        # A folder may use what is above it in the tree (its parent's interface), and a parent what lies in it.
        near = {
            name
            for name in inner
            if f"{name}.".startswith(f"{folders[module]}.") or f"{folders[module]}.".startswith(f"{name}.")
        }
        graph.setdefault(folders[module], set()).update(inner - near)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of folders: {' <- '.join(error.args[1])}")


def test_gin_is_imported_in_few_files_only():
    users = {module for module in FILES if "gin" in {name.split(".")[0] for name in imports(module)}}
    assert users <= GIN_FILES


@pytest.mark.parametrize("folder", ["runtime", "core", "fusion", "guidance", "models", "data", "sampling", "training"])
def test_the_library_works_without_a_configuration(folder):
    users = {m for m in FILES if folder_of(m) == folder and {"core.config", "core.configurables"} & own_imports(m)}
    assert users - {"core.config"} == set()


@pytest.mark.parametrize(
    ("importer", "imported", "expected"),
    [
        ("training.trainer", "models.transformer", True),
        ("models.transformer", "fusion.merged", True),
        ("models.reducers.pca", "models.reducers.linear", True),
        ("train", "core.config", True),
        ("train", "command_line", True),
        ("train", "run", False),
        ("fusion.merged", "guidance", False),
        ("data.loader", "sampling.generate", False),
        ("core.objective", "models.codec", False),
        ("runtime.checkpoint", "core.channels", False),
        ("runs.load", "sweeps.plan", False),
        ("", "training.trainer", True),
    ],
)
def test_the_table_says_what_it_should(importer, imported, expected):
    assert allowed(importer, imported) is expected


def test_the_package_itself_imports_the_standard_library_only():
    # The public names are resolved on first use, by name.
    assert {name.split(".")[0] for name in imports("")} <= set(sys.stdlib_module_names)


def test_importing_redi_takes_nothing_heavy_along():
    code = f"import sys, redi; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
