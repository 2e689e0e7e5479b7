"""docs/sweeps.md: every command parses, and its sweep has the points that the page states."""

import re
import shlex
from pathlib import Path

import pytest

from redi.core import config
from redi.core.configurables import import_all
from redi.sweeps.plan import plan
from redi.sweeps.sweep import sweep

import_all()

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "sweeps.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TEXT = "".join(block for language, block in BLOCKS if not language).replace("\\\n", " ")
LINES = [line for line in TEXT.splitlines() if line.startswith("python")]
COMMANDS = [shlex.split(line, comments=True) for line in LINES]


def values(command: list[str], flag: str) -> list[str]:
    return [word.partition("=")[2] for word in command if word.startswith(f"--{flag}=")]


def planned(command: list[str], tmp_path: Path):
    (tmp_path / "my_sweep.gin").write_text(re.search(r"```gin\n(.*?)```", PAGE, re.DOTALL)[1])
    files = [str(tmp_path / name) if (tmp_path / name).exists() else name for name in values(command, "gin_file")]
    config.parse(files, values(command, "gin_bindings"))
    asked = {name: config.unevaluated(f"sweep.{name}") for name in ("grid", "points", "names")}
    return plan(tmp_path / "run", config.text_without(sweep), **asked)


@pytest.mark.parametrize("command", [c for c in COMMANDS if values(c, "gin_file")], ids=lambda c: "-".join(c[3:5]))
def test_a_command_plans_its_points(command, tmp_path):
    assert command[:3] == ["python", "-m", "redi.sweep"] and len(planned(command, tmp_path)) > 1


def test_the_first_sweep_has_three_ranks_and_two_seeds(tmp_path):
    points = planned(COMMANDS[0], tmp_path)
    assert len(points) == 6 and len({point.group for point in points}) == 3


def test_the_scales_of_guidance_share_one_model(tmp_path):
    (command,) = [c for c in COMMANDS if "--run_dir=runs/guidance" in c]
    points = planned(command, tmp_path)
    assert len(points) == 3 and len({point.model for point in points}) == 1


def test_the_point_that_is_run_alone_is_one_of_its_sweep(tmp_path):
    (point,) = [name for c in COMMANDS for name in values(c, "point")]
    command = next(c for c in COMMANDS if "--gin_file=sweeps/digits_rank.gin" in c)
    assert point in [entry.name for entry in planned(command, tmp_path)]


@pytest.mark.parametrize("name", re.findall(r"`([\w*]+\.gin)`", PAGE.partition("## Shipped sweeps")[2]))
def test_a_shipped_sweep_exists(name):
    assert list((ROOT / "gin" / "sweeps").glob(name))
