"""What is shipped: packages, gin files, wheel, console scripts, pinned versions, Dockerfile, changelog and citation."""

import configparser
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import redi

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ["redi", "gin", "experiments/curves", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
EXTRAS = ("test", "dev", "docs", "gpu")

setup = configparser.ConfigParser(interpolation=None)
setup.read(ROOT / "setup.cfg", encoding="utf-8")


def lines(section: str, option: str) -> list[str]:
    return [line for line in setup[section][option].splitlines() if line and not line.startswith("#")]


SCRIPTS = dict(line.replace(" ", "").split("=") for line in lines("options.entry_points", "console_scripts"))


def test_the_package_list_is_what_is_on_disk():
    on_disk = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "redi").rglob("__init__.py")}
    assert sorted(lines("options", "packages")) == sorted(on_disk | {"redi.configs", "redi.curves"})


def test_every_folder_with_modules_is_a_package():
    folders = {file.parent for file in (ROOT / "redi").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_gin_folder_is_no_package():
    # With an __init__.py it would hide gin-config wherever the repository is on sys.path.
    assert list((ROOT / "gin").rglob("*.py")) == []


@pytest.mark.parametrize("target", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_console_script_points_to_a_function_without_arguments(target):
    module, name = target.split(":")
    function = getattr(importlib.import_module(module), name)
    inspect.signature(function).bind()


@pytest.mark.parametrize("constraints", sorted((ROOT / "constraints").glob("*.txt")), ids=lambda file: file.stem)
def test_every_requirement_is_pinned_within_its_range(constraints):
    pins = [Requirement(line) for line in constraints.read_text().splitlines() if not line.startswith("#")]
    version = {canonical(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    required = lines("options", "install_requires")
    for extra in EXTRAS:
        required += lines("options.extras_require", extra)
    for requirement in map(Requirement, required):
        pinned = version.get(canonical(requirement.name), "nothing")
        assert pinned != "nothing" and pinned in requirement.specifier, f"{requirement}: pinned to {pinned}"


def test_every_supported_python_has_a_constraints_file_and_a_classifier():
    files = {file.name for file in (ROOT / "constraints").glob("*.txt")}
    assert files == {f"py{version.replace('.', '')}-torch211.txt" for version in PYTHONS}
    named = [line.split(" :: ")[-1] for line in lines("metadata", "classifiers") if "Python :: 3." in line]
    assert named == PYTHONS
    assert setup["options"]["python_requires"] == f">={PYTHONS[0]}"


def test_the_installation_page_says_what_was_run_with_every_python():
    page = (ROOT / "docs/install.md").read_text()
    assert re.findall(r"^\| (3\.\d+)", page, flags=re.MULTILINE) == PYTHONS


def test_constraints_name_the_extras_that_they_cover():
    for file in (ROOT / "constraints").glob("*.txt"):
        assert f"redi-diffusion[{','.join(EXTRAS)}]" in file.read_text()


def texts() -> list[Path]:
    folders = ("redi", "docs", "tests", "gin", "experiments", "benchmarks", "constraints")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*")]
    files += [file for file in ROOT.iterdir() if file.is_file()]
    ends = (".py", ".md", ".gin", ".sh", ".txt", ".sbatch", ".cfg", ".ipynb", "")
    return [file for file in files if file.is_file() and file.suffix in ends and not file.name.startswith(".")]


def test_every_advised_installation_installs_this_project():
    name = re.compile(r"(?<![\w./-])(redi(?:-diffusion)?)\[([a-z,]+)\]")
    places = [(file, *match) for file in texts() for match in name.findall(file.read_text().replace("\\", ""))]
    assert len(places) > 5
    extras = set(setup["options.extras_require"])
    wrong = [place for place in places if place[1] != "redi-diffusion" or not set(place[2].split(",")) <= extras]
    assert wrong == []


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_the_dockerfile_copies_files_that_exist_and_reach_the_build():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [name for order, rest in instructions((ROOT / "Dockerfile").read_text()) if order == "COPY"
              for name in rest.split()[:-1]]  # fmt: skip
    assert set(copied) == {*SHIPPED, "constraints"}
    assert all((ROOT / name).exists() and f"!{name}" in ignore for name in copied)


def test_the_dockerfile_has_both_targets_with_extras_and_constraints_that_exist():
    orders = instructions((ROOT / "Dockerfile").read_text())
    targets = {rest.split(" AS ")[1]: rest.split()[0] for order, rest in orders if order == "FROM"}
    assert targets == {"base": "python:${PYTHON}-slim-trixie", "cuda": "base", "cpu": "base"}
    [default] = [rest.split("=")[1] for order, rest in orders if order == "ARG"]
    assert default in PYTHONS
    installs = [rest for order, rest in orders if order == "RUN" and "pip install" in rest]
    assert len(installs) == 2 and all('-c "constraints/py${version}-torch211.txt"' in rest for rest in installs)
    for rest in installs:
        [extras] = re.findall(r'"\.\[(.*?)\]"', rest)
        assert set(extras.split(",")) <= set(setup["options.extras_require"])


def test_the_images_run_programs_without_root():
    orders = instructions((ROOT / "Dockerfile").read_text())
    starts = [place for place, (order, rest) in enumerate(orders) if order == "FROM" and rest.startswith("base")]
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        stage = dict(orders[start:stop])
        assert stage["USER"] == "1000" and stage["CMD"] == '["redi"]'


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == redi.__version__
    assert citation["cff-version"] == "1.2.0" and citation["message"]
    assert citation["authors"] == [{"name": setup["metadata"]["author"]}]
    assert citation["license"] == setup["metadata"]["license"]
    [paper] = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2504.16064" and paper["title"] and paper["authors"]


def test_the_changelog_keeps_its_format():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[?([\w.]+)\]?", changelog, flags=re.MULTILINE)
    assert versions[0] == "Unreleased" and redi.__version__ in versions
    sections = re.findall(r"^### (.*)", changelog, flags=re.MULTILINE)
    assert sections and set(sections) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The interpreter of an environment that holds redi's wheel and sees the dependencies, but not this checkout."""
    tmp = tmp_path_factory.mktemp("wheel")
    source = tmp / "source"
    source.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, source)
    pip("wheel", "--no-build-isolation", "--wheel-dir", tmp, source)
    run(sys.executable, "-m", "venv", "--without-pip", tmp / "env")
    packages = next((tmp / "env").glob("lib/python*/site-packages"))
    # Lines of a .pth file extend sys.path, but the .pth files in those folders, an editable redi's too, stay unread.
    ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(ours) + "\n")
    pip("install", "--target", packages, next(tmp.glob("redi_diffusion-*.whl")))
    return tmp / "env" / "bin" / "python"


def pip(command: str, *arguments) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", command, "--no-deps", "--no-index", *arguments)


def run(*command, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_brings_every_gin_file(installed, tmp_path):
    code = "import redi; from redi.core.config import config_dir; print(redi.__file__, config_dir(), sep='\\n')"
    package, configs = map(Path, run(installed, "-c", code, cwd=tmp_path).splitlines())
    assert installed.parents[1] in package.parents, "the checkout was imported, not the wheel"
    assert package.parent in configs.parents

    def gin_files(folder: Path) -> dict[str, str]:
        return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*.gin")}

    assert gin_files(configs) == gin_files(ROOT / "gin")
    assert "base.gin" in gin_files(configs)


def test_the_wheel_brings_the_reference_curves(installed, tmp_path):
    code = "from redi.pages.reference import read_curve; [read_curve(name) for name in {}]"
    names = sorted(path.name for path in (ROOT / "experiments/curves").glob("*.jsonl"))
    run(installed, "-c", code.format(names), cwd=tmp_path)


def test_the_wheel_runs_from_a_foreign_folder(installed, tmp_path):
    assert run(installed, "-m", "redi.components", cwd=tmp_path).strip()


def test_the_wheel_brings_the_templates_of_pages(installed, tmp_path):
    run(installed, "-c", "from redi.pages.report import report; report('.')", cwd=tmp_path)
    assert "holds no results yet" in (tmp_path / "report.html").read_text()
