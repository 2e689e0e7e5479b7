"""Who may import whom: downwards only, gin in two files, and `import redi` takes nothing heavy along."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A package stands for everything in it that is not listed by itself.
LAYERS = [
    {
        "core.registry",
        "core.channels",
        "core.config",
        "core.config_text",
        "core.consent",
        "core.archives",
        "core.artefact",
        "core.atomic",
        "core.interrupt",
        "core.device",
        "core.distributed",
        "core.finiteness",
        "core.grids",
        "core.lock",
        "core.log",
        "core.nonfinite",
        "core.pickles",
        "core.pretrained_files",
        "core.progress",
        "core.rows",
        "core.sealing",
        "core.seeds",
        "core.trace",
        "core.watchdog",
        "data.preprocessing",
        "models.attention_backends",
        "models.pretrained_network",
        "models.published_file",
    },
    {
        "models.encoders",
        "models.reducers",
        "models.attention",
        "models.autoencoders",
        "fusion",
        "guidance",
        "core.alignment",
        "core.parallel",
        "core.processes",
        "data.datasets",
    },
    {
        "core.codec",
        "core.ema",
        "core.noise_table",
        "core.objective",
        "core.samplers",
        "models.transformer",
    },
    {
        "core.trainer",
        "core.checkpoint",
        "core.clamping",
        "core.generation",
        "core.likelihood",
        "core.cost",
        "core.memory",
        "core.posthoc",
        "core.profiling",
        "core.step",
        "core.diagnosis",
        "core.previews",
        "core.training_settings",
        "core.training_state",
        "core.warm_start",
        "models.framework",
        "models.published",
        "models.published_bindings",
        "models.published_layout",
        "data",
        "evaluation",
    },
    {
        "train",
        "sample",
        "evaluate",
        "prepare",
        "run",
        "report",
        "query",
        "average",
        "convert",
        "hub",
        "checks",
        "components",
        "sweeps",
        "sweep",
        "convergence",
        "profile",
        "program",
        "runs",
    },
]
# Within these levels modules may import each other; elsewhere only what lies below.
SOCIABLE = {0, 3, 4}
# Folders only: their __init__ holds no code.
BARE = {"", "core", "models"}
GIN_FILES = {"core.registry", "core.config"}
HEAVY = {"torch", "diffusers", "transformers", "xformers", "timm"}

FILES = {
    ".".join(file.relative_to(ROOT / "redi").with_suffix("").parts).removesuffix("__init__").removesuffix("."): file
    for file in sorted((ROOT / "redi").rglob("*.py"))
}


def place(module: str) -> tuple[int, str] | None:
    """The level and the entry of the table that a module (named without `redi.`) belongs to."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        entry = ".".join(parts[:length])
        for level, entries in enumerate(LAYERS):
            if entry in entries:
                return level, entry
    return None


def allowed(importer: str, imported: str) -> bool:
    if imported in BARE:  # `from redi import __version__`
        return True
    if importer in BARE:
        return False
    if not (place(importer) and place(imported)):  # reported by the test below
        return True
    (level, entry), (below, other) = place(importer), place(imported)
    if other == "core.config" and entry != other:
        return level == 4
    return below < level or entry == other or (below == level in SOCIABLE)


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


@pytest.mark.parametrize("module", [name for name in FILES if name not in BARE])
def test_a_module_has_its_place_in_the_table(module):
    assert place(module), f"redi.{module}: enter it in LAYERS, on the lowest level that it can live on"


@pytest.mark.parametrize("module", FILES)
def test_imports_point_downwards(module):
    own = {name.removeprefix("redi").removeprefix(".") for name in imports(module) if name.split(".")[0] == "redi"}
    assert [f"redi.{name}" for name in sorted(own) if not allowed(module, name)] == []


def test_gin_is_imported_in_two_files_only():
    users = {module for module in FILES if "gin" in {name.split(".")[0] for name in imports(module)}}
    assert users <= GIN_FILES


@pytest.mark.parametrize(
    ("importer", "imported", "expected"),
    [
        ("core.trainer", "models.transformer", True),
        ("models.transformer", "fusion.merged", True),
        ("models.reducers.pca", "models.reducers.linear", True),
        ("core.checkpoint", "data.cache", True),
        ("train", "core.config", True),
        ("core.trainer", "core.config", False),
        ("fusion.merged", "guidance", False),
        ("models.encoders.dinov2", "models.reducers", False),
        ("core.codec", "core.objective", False),
        ("data.datasets.digits", "data.cache", False),
        ("core.channels", "fusion", False),
        ("", "core.trainer", False),
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
