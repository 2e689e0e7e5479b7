import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import redi
from redi.core import config
from redi.core.configurables import import_all
from redi.core.listing import page
from redi.core.listing import table as table_text
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
    summary, doc = table[position + 1].strip(), " ".join(inspect.getdoc(component).split())
    assert doc.startswith(summary) and summary.endswith(".")
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
    needed = paths | {"WebDataset": {"shards"}} | dict.fromkeys(("Cooldown", "Cosine", "Linear"), {"num_steps"})
    for place, (argument, parameter) in enumerate(inspect.signature(registries[kind][name]).parameters.items()):
        assert parameter.kind is parameter.KEYWORD_ONLY or place == 0, argument
        if argument not in registries[kind].runtime:
            assert (parameter.default is parameter.empty) is (argument in needed.get(name, ())), argument


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_gin_file_opens_with_what_it_is(name):
    assert (config.config_dir() / name).read_text().startswith("# ")


def test_the_program_prints_the_table_from_any_folder(table, tmp_path, python):
    done = python("-m", "redi.components", cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and done.stdout.rstrip() == "\n".join(table).rstrip()


# ---- the page of one


def test_the_page_of_a_function_shows_its_arguments_as_bindings_with_what_they_mean():
    lines = page("train").splitlines()
    assert lines[0] == "train  (redi.training.trainer)" and lines[2].startswith("Train a joint model")
    position = lines.index("train.max_skipped_steps = 10  # an integer")
    assert "a step with a non-finite gradient is skipped" in lines[position + 1]
    assert "train.codec = ...  # must be bound, a component (@JointCodec)" in lines
    position = lines.index("train.ema = @EMA  # a function or class (@...)")
    assert lines[position - 1].startswith("train.optimizer = @AdamW") and "missing arguments" in lines[position + 1]
    assert lines[-1] == "Supplied by the library: run_dir"
    assert not any(line.startswith("train.run_dir") for line in lines)


@pytest.mark.parametrize("name", ["PCA", "reducers.PCA"])
def test_the_page_of_a_component_explains_inherited_arguments_too(name):
    lines = page(name).splitlines()
    assert lines[0] == "@reducers.PCA  (redi.models.reducers.pca)"
    position = lines.index("PCA.scale = 'unit_rms'  # 'raw' or 'unit_rms' or 'whiten'")
    assert lines[position + 1].startswith("    'raw' does not scale the projection;")


def test_the_page_of_a_kind_shows_its_components_and_their_interface():
    text = page("reducers")
    assert text.startswith("reducers\n  @reducers.ConvBottleneck(") and "(N, E, h, w) to (N, R, h, w)" in text
    assert "@encoders." not in text


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_component_has_a_page_whose_bindings_parse(kind, name):
    lines = [line for line in page(f"{kind}.{name}").splitlines() if line.startswith(f"{name}.")]
    config.parse([], [line for line in lines if "must be bound" not in line])


def test_the_page_of_an_optimizer_has_no_formulas_and_no_component_where_a_number_belongs():
    lines = page("AdamW").splitlines()
    assert "AdamW.lr = 0.001  # a number" in lines and not any(".. math::" in line for line in lines)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="is named 'reducer'; did you mean 'reducers'?"):
        page("reducer")
    with pytest.raises(ValueError, match="did you mean 'PCA'?"):
        page("PAC")


def test_the_program_ends_quietly_when_its_reader_goes_or_its_error_output_is_closed(tmp_path):
    command = f"{sys.executable} -m redi.components 2>errors | true; echo ${{PIPESTATUS[0]}}"
    closed = f"{sys.executable} -m redi.components --component=nothing >&- 2>&-; echo $?"
    done = subprocess.run(
        ["bash", "-c", f"{command}; {closed}"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["141", "1"]
    assert (tmp_path / "errors").read_text() == "" and done.stderr == ""
