"""docs/papers.md: its components and presets exist, and its numbers are those of experiments/."""

import importlib.util
import re
from pathlib import Path

import pytest

from redi.core.configurables import import_all
from redi.core.gin_errors import bindable_names
from redi.core.registry import registries

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "papers.md").read_text()
IMPLEMENTED = [line.split(" | ") for line in re.search(r"\n\| paper \|(.*?)\n\n", PAGE, re.DOTALL)[1].splitlines()[2:]]


@pytest.mark.parametrize("row", IMPLEMENTED, ids=lambda row: row[0])
def test_a_component_and_a_preset_of_a_row_exist(row):
    import_all()
    _, components, presets, _ = row
    for name in re.findall(r"`([\w.]+)`", components):
        kind, _, rest = name.partition(".")
        if kind in registries:
            assert rest in registries[kind], name
        elif kind == "redi":
            assert importlib.util.find_spec(name.rpartition(".")[0] if rest.endswith("likelihood") else name), name
        else:
            assert f"redi.{kind}" in bindable_names(), name
    for name in re.findall(r"`([\w./]+\.gin)`", presets):
        assert (ROOT / "gin" / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("row", IMPLEMENTED, ids=lambda row: row[0])
def test_a_measured_number_has_a_date_and_stands_in_the_experiments(row):
    measured = row[-1]
    assert "not run" in measured or re.search(r"\d{4}-\d{2}-\d{2}", measured)
    records = "".join(path.read_text() for path in (ROOT / "experiments").glob("*/README.md"))
    for number in re.findall(r"(?<![\d.-])\d+\.\d+ ?±? ?[\d.]*\d", measured.replace("0.06 %", "")):
        assert number in records, number
