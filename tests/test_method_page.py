"""docs/method.md: what it names exists, and its equations can be typeset."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "method.md").read_text()
NAMES = sorted(set(re.findall(r"`(redi\.[\w.]+)`", PAGE)))
EQUATIONS = re.findall(r"^```math\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_the_page_is_that_of_the_library(name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            value = getattr(value, attribute)
        return
    pytest.fail(f"{name} cannot be imported")


def test_every_section_has_an_equation_and_the_function_that_computes_it():
    _, *sections = PAGE.split("\n## ")
    assert [s.splitlines()[0] for s in sections if "```math" not in s or "`redi." not in s] == []
    for number in (*range(5, 14), "3.1", "3.4"):
        assert re.search(rf"\b{number}\b", PAGE), f"Eq. or section {number} of the paper"


@pytest.mark.parametrize("equation", EQUATIONS)
def test_an_equation_is_converted_to_mathml(equation):
    converter = pytest.importorskip("latex2mathml.converter")
    assert "merror" not in converter.convert(equation, display="block")
