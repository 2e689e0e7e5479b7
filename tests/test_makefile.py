"""make install: which Python it takes, what it installs, and when it does nothing. pip and venv are stand-ins."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# A Python of another version: -c runs in the real one under that version, -m venv copies this file, and the commands
# given to pip are appended to pip.log.
STAND_IN = """#!/bin/sh
[ "$1" = -I ] && shift
case "$1 $2" in
    "-c "*) exec {python} -c "import sys; sys.version_info = {version}; sys._base_executable = '$0'
$2" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") shift 2; echo "$@" >> pip.log ;;
esac
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with what make reads, and no Python on the PATH."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "constraints", folder / "constraints")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "make", "cat", "cksum", "cp", "mkdir", "rm", "sed"):
        (tools / tool).symlink_to(shutil.which(tool))
    return folder


def add_python(checkout: Path, name: str, version: tuple[int, ...]) -> None:
    file = checkout.parent / "tools" / name
    file.write_text(STAND_IN.format(python=sys.executable, version=version))
    file.chmod(0o755)


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {"PATH": str(checkout.parent / "tools"), "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        ["make", "install", *arguments], cwd=checkout, env=environment, capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def pip_calls(checkout: Path) -> list[str]:
    log = checkout / "pip.log"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_a_supported_python_is_installed_from_its_constraints(checkout, minor):
    add_python(checkout, f"python3.{minor}", (3, minor, 1))
    done = make(checkout)
    assert done.returncode == 0, done.stderr
    assert pip_calls(checkout) == [f"install -e .[test,dev,docs] -c constraints/py3{minor}-torch211.txt"]


@pytest.mark.parametrize("minor", [10, 15])
def test_another_python_is_refused(checkout, minor):
    add_python(checkout, "python3", (3, minor, 0))
    done = make(checkout)
    assert done.returncode != 0 and "No Python 3.11 to 3.14 with venv and ensurepip among: python3.12" in done.stderr
    done = make(checkout, "PYTHON=python3")
    assert done.returncode != 0 and "PYTHON=python3 is not Python 3.11 to 3.14" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_that_does_not_run_is_passed_over(checkout):
    add_python(checkout, "python3.13", (3, 13, 1))
    shim = checkout.parent / "tools/python3.12"
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    assert "py313" in make(checkout).stdout


def test_an_installed_environment_is_left_alone(checkout):
    add_python(checkout, "python3.12", (3, 12, 1))
    make(checkout)
    assert make(checkout).stdout == ""
    assert len(pip_calls(checkout)) == 1


def test_extras_are_added_and_kept_when_requirements_change(checkout):
    add_python(checkout, "python3.12", (3, 12, 1))
    make(checkout, "EXTRAS=gpu")
    with open(checkout / "setup.cfg", "a") as file:
        file.write("# another requirement\n")
    make(checkout)
    install = "install -e .[test,dev,docs,gpu] -c constraints/py312-torch211.txt"
    assert pip_calls(checkout) == [install, "uninstall -qq -y redi", install]


def test_the_distribution_of_the_old_name_is_removed_before_an_update(checkout):
    add_python(checkout, "python3.12", (3, 12, 1))
    make(checkout)
    (checkout / "redi.egg-info").mkdir()
    (checkout / "setup.cfg").write_text("[metadata]\n")
    make(checkout)
    assert [call.split()[0] for call in pip_calls(checkout)] == ["install", "uninstall", "install"]
    assert not (checkout / "redi.egg-info").exists()


def test_another_python_recreates_the_environment(checkout):
    add_python(checkout, "python3.12", (3, 12, 1))
    make(checkout)
    (checkout / ".venv/old").touch()
    add_python(checkout, "python3.14", (3, 14, 0))
    assert make(checkout, "PYTHON=python3.14").returncode == 0
    assert not (checkout / ".venv/old").exists()
    assert "py314" in pip_calls(checkout)[-1]
