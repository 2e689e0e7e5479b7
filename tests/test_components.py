import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import redi
from redi.core import config
from redi.core.configurables import import_all
from redi.core.configurables import table as table_text
from redi.core.registry import registries

import_all()
ROOT = Path(__file__).resolve().parents[1]
EVERY = [(kind, name) for kind in sorted(registries) for name in registries[kind]]
SHIPPED = sorted(str(file.relative_to(config.config_dir())) for file in config.config_dir().rglob("*.gin"))


@pytest.fixture(scope="module")
def table() -> list[str]:
    return table_text().splitlines()


def test_every_kind_of_component_is_registered():
    assert {registry.interface.__module__ for registry in registries.values()} == set(redi.KINDS.values())
    assert all(registries.values())


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_the_table_shows_a_component_with_its_arguments_and_first_docstring_line(table, kind, name):
    (position,) = [i for i, line in enumerate(table) if line.startswith(f"  @{kind}.{name}(")]
    component = registries[kind][name]
    assert table[position + 1].strip() == inspect.getdoc(component).splitlines()[0]
    for argument, parameter in inspect.signature(component).parameters.items():
        supplied = argument in registries[kind].runtime
        shown = argument if parameter.default is parameter.empty else f"{argument}={parameter.default!r}"
        assert (shown in table[position]) is not supplied


def test_the_table_reads_as_what_can_be_typed_into_a_gin_file(table):
    for line in table:
        if line.startswith("  @"):
            reference = line.strip().split("(")[0]
            config.parse([], [f"held = {reference}"])
            assert config.statements(config.full_text()) == {"held": reference}


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_component_has_a_docstring_of_its_own_that_begins_with_a_sentence(kind, name):
    component = registries[kind][name]
    doc = component.__doc__
    assert doc and doc is not registries[kind].interface.__doc__
    first = inspect.cleandoc(doc).splitlines()[0]
    assert len(first) >= 15 and not first.startswith(name)
    paragraph = inspect.cleandoc(doc).split("\n\n")[0]
    assert paragraph.rstrip().endswith(".")


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_the_settings_of_a_component_are_keywords_with_defaults_or_supplied(kind, name):
    paths = {name: {"path"} for name in ("ImageFolder", "HuggingFace", "AdmBatch")}
    needed = (paths | {"WebDataset": {"shards"}}).get(name, set())
    for place, (argument, parameter) in enumerate(inspect.signature(registries[kind][name]).parameters.items()):
        assert parameter.kind is parameter.KEYWORD_ONLY or place == 0, argument
        if argument not in registries[kind].runtime:
            assert (parameter.default is parameter.empty) is (argument in needed), argument


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_gin_file_parses(name):
    config.parse([name])
    assert config.full_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_gin_file_opens_with_what_it_is(name):
    assert (config.config_dir() / name).read_text().startswith("# ")


def test_the_program_prints_the_table_from_any_folder(table, tmp_path):
    command = [sys.executable, "-m", "redi.components"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.rstrip() == "\n".join(table).rstrip()
