"""What is shipped: the package list, the gin files, the wheel, the console scripts and the pinned versions."""

import configparser
import importlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ["redi", "gin", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]

setup = configparser.ConfigParser(interpolation=None)
setup.read(ROOT / "setup.cfg", encoding="utf-8")


def lines(section: str, option: str) -> list[str]:
    return [line for line in setup[section][option].splitlines() if line and not line.startswith("#")]


SCRIPTS = dict(line.replace(" ", "").split("=") for line in lines("options.entry_points", "console_scripts"))


def test_the_package_list_is_what_is_on_disk():
    on_disk = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "redi").rglob("__init__.py")}
    assert sorted(lines("options", "packages")) == sorted(on_disk | {"redi.configs"})


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
    for extra in ("test", "dev", "gpu"):
        required += lines("options.extras_require", extra)
    for requirement in map(Requirement, required):
        pinned = version.get(canonical(requirement.name), "nothing")
        assert pinned != "nothing" and pinned in requirement.specifier, f"{requirement}: pinned to {pinned}"


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
    pip("install", "--target", packages, next(tmp.glob("redi-*.whl")))
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


def test_the_wheel_runs_from_a_foreign_folder(installed, tmp_path):
    assert run(installed, "-m", "redi.components", cwd=tmp_path).strip()


def test_the_wheel_brings_the_templates_of_pages(installed, tmp_path):
    run(installed, "-c", "from redi.pages.report import report; report('.')", cwd=tmp_path)
    assert "holds no results yet" in (tmp_path / "report.html").read_text()
