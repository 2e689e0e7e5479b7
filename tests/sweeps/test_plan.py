"""Every point parsed before anything starts, and who shares a trained model."""

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest

from redi.core import config
from redi.core.configurables import import_all
from redi.runtime.checkpoint import checkpoint_dir
from redi.sweeps.plan import plan, write_plan
from redi.sweeps.presets import read_presets
from redi.sweeps.sweep import sweep

import_all()
SHIPPED = sorted(f"sweeps/{file.name}" for file in (config.config_dir() / "sweeps").glob("*.gin"))
EULER = "EulerMaruyama.num_evaluations"


def asked() -> dict:
    """What the parsed configuration sweeps."""
    swept = {name: config.unevaluated(f"sweep.{name}") for name in ("grid", "points", "names")}
    return swept | {"points": read_presets(swept["points"])}


@pytest.fixture
def planned(tiny_gin, tmp_path):
    """Plans what a sweep file with these lines asks for, in the folder `sweep`."""

    def planned(*lines: str, base: str = tiny_gin):
        config.parse([base], lines)
        return plan(tmp_path / "sweep", config.text_without(sweep), **asked())

    return planned


def test_every_point_has_its_configuration_without_the_sweep_s(planned):
    points = planned(f"sweep.grid = {{'{EULER}': [2, 5]}}")
    for point, number in zip(points, (2, 5), strict=True):
        statements = config.statements(point.text)
        assert statements[EULER] == str(number) and statements["train.num_steps"] == "2"
        assert not [key for key in statements if key.startswith("sweep.")]


def test_the_configuration_at_hand_stays_as_it_is(planned):
    planned("sweep.grid = {'PCA.rank': [1, 2]}")
    assert config.bound("PCA.rank") == 2 and config.unevaluated("sweep.grid") == {"PCA.rank": [1, 2]}


def test_components_are_swept_like_numbers(planned):
    merged, separate = planned("sweep.grid = {'DiffusionTransformer.fusion': [@fusion.Merged, @fusion.Separate]}")
    assert (merged.name, separate.name) == ("fusion=Merged", "fusion=Separate")
    assert config.statements(separate.text)["DiffusionTransformer.fusion"] == "@fusion.Separate"


def test_values_that_go_together_may_bring_the_component_that_they_belong_to(planned):
    reducer = "{'Representation.reducer': @reducers.GaussianRandomProjection(), 'GaussianRandomProjection.rank': 3}"
    (point,) = planned(f"sweep.points = [{reducer}]")
    assert config.statements(point.text)["GaussianRandomProjection.rank"] == "3"


def test_macros_are_swept(planned):
    points = planned("WIDTH = 8", "DiffusionTransformer.width = %WIDTH", "sweep.grid = {'WIDTH': [16, 32]}")
    assert [config.statements(point.text)["WIDTH"] for point in points] == ["16", "32"]
    assert [point.model for point in points] == ["WIDTH=16", "WIDTH=32"]


def test_a_saved_sweep_file_names_its_points_as_the_original(planned, tmp_path):
    names = ["sweep.names = ['plain', 'redi']", "sweep.grid = {'train.seed': [0, 1], 'PCA.scale': ['raw', 'whiten']}"]
    points = "[{'JointObjective.label_dropout': 0.0, 'EMA.decay': 0.5}, {'EMA.decay': 0.9}]"
    before = planned(*names, f"sweep.points = {points}")
    (tmp_path / "saved.gin").write_text(config.full_text())
    assert planned(base=str(tmp_path / "saved.gin")) == before


def test_a_point_names_the_plug_ins_that_it_uses(planned, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "from redi.core.samplers import register\nfrom redi.core.samplers.euler import Euler\n\n\n"
    (tmp_path / "a_lab.py").write_text(f"{text}@register\nclass OwnEuler(Euler):\n    pass\n")
    points = planned("import a_lab", "sweep.grid = {'generate.sampler': [@samplers.Heun(), @samplers.OwnEuler()]}")
    source = hashlib.sha256((tmp_path / "a_lab.py").read_bytes()).hexdigest()
    assert [point.plug_ins for point in points] == [{}, {"a_lab.OwnEuler": source}]


# ---- shared models


def test_points_that_differ_in_sampling_share_a_model(planned):
    points = planned(f"sweep.grid = {{'{EULER}': [2, 3], 'generate.seed': [0, 1], 'sample.num_images': [20, 30]}}")
    assert len(points) == 8 and {point.model for point in points} == {"model"}


def test_a_model_is_called_by_what_matters_for_its_training(planned):
    points = planned("sweep.grid = {'ClassifierFree.scale': [1.0, 2.0], 'PCA.rank': [2, 3], 'train.seed': [0, 1]}")
    assert {point.model for point in points} == {"rank=2,seed=0", "rank=2,seed=1", "rank=3,seed=0", "rank=3,seed=1"}
    assert all(point.model in point.name for point in points)


def test_a_longer_training_is_another_model(planned):
    points = planned("sweep.grid = {'train.num_steps': [2, 4], 'train.log_every': [1, 2]}")
    assert [point.model for point in points] == ["num_steps=2", "num_steps=4"] * 2
    assert [point.num_steps for point in points] == [2, 4] * 2


def test_a_longer_training_by_a_macro_is_another_model(planned):
    points = planned("STEPS = 3", "train.num_steps = %STEPS", "sweep.grid = {'STEPS': [2, 4]}")
    assert [(point.model, point.num_steps) for point in points] == [("STEPS=2", 2), ("STEPS=4", 4)]


@pytest.mark.parametrize("key", ["DINOv2.weights", "FILE"])
def test_other_weights_of_an_encoder_are_another_model(planned, key):
    encoder = ["Representation.encoder = @encoders.DINOv2()", "FILE = 'c'", "DINOv2.weights = %FILE"]
    first, second = planned(*encoder, f"sweep.grid = {{'{key}': ['a', 'b']}}")
    assert first.model != second.model


def test_other_weights_of_an_evaluation_s_network_share_a_model(planned):
    network = "evaluate.networks = [@encoders.Inception()]"
    first, second = planned(network, "sweep.grid = {'Inception.weights': ['a', 'b']}")
    assert first.model == second.model


def test_the_same_training_said_in_two_ways_is_one_model(planned):
    default, stated = planned("sweep.points = [{'EulerMaruyama.num_evaluations': 3}, {'PCA.rank': 2}]")
    assert default.model == stated.model


def test_models_that_names_cannot_tell_apart_have_folders_of_their_own(planned):
    points = "[{'train.precision': 'a b', 'generate.seed': 0}, {'train.precision': 'a_b', 'generate.seed': 0}]"
    first, second = planned(f"sweep.points = {points}", "sweep.names = ['one', 'other']")
    assert (first.model, second.model) == ("precision=a_b", "precision=a_b-2")


def test_a_name_by_hand_is_the_model_s_where_all_that_it_stands_for_is_trained(planned):
    points = "[{'EMA.decay': 0.5, 'AdamW.lr': 0.1}, {'EMA.decay': 0.9, 'generate.seed': 1}]"
    names = "sweep.names = ['one', 'other']"
    one, other = planned(f"sweep.points = {points}", names, "sweep.grid = {'train.precision': ['float32']}")
    assert (one.model, other.model) == ("one,precision=float32", "decay=0.9,precision=float32")


def test_ranks_of_one_reducer_share_a_cache(planned):
    points = planned("sweep.grid = {'PCA.rank': [2, 8, 4], 'train.seed': [0, 1]}")
    assert {config.statements(point.text)["PCA.store_rank"] for point in points} == {"8"}


def test_a_rank_to_store_that_the_file_binds_stays(planned):
    points = planned("PCA.store_rank = 16", "sweep.grid = {'PCA.rank': [2, 8]}")
    assert {config.statements(point.text)["PCA.store_rank"] for point in points} == {"16"}


def test_ranks_of_different_encoders_are_not_stored_for_each_other(planned):
    narrow, wide = "{'DomainEncoder.width': 4, 'PCA.rank': 2}", "{'DomainEncoder.width': 16, 'PCA.rank': 8}"
    points = planned(f"sweep.points = [{narrow}, {wide}]")
    assert all("PCA.store_rank" not in config.statements(point.text) for point in points)


def test_a_reducer_that_stores_what_it_uses_is_swept_too(planned):
    points = planned(
        "Representation.reducer = @reducers.GaussianRandomProjection()",
        "sweep.grid = {'GaussianRandomProjection.rank': [2, 4]}",
    )
    assert len(points) == 2


# ---- refused before anything starts


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sweep.grid = {'PCA.rnak': [1]}", "point rnak=1 of the sweep: (.|\n)*did you mean 'rank'"),
        ("sweep.grid = {'PAC.rank': [1]}", "point rank=1 of the sweep: (.|\n)*did you mean 'PCA'"),
        ("sweep.grid = {'IMAGE': ['here']}", "point IMAGE=here of the sweep has .* refers to IMAGE. Drop"),
        ("sweep.grid = {'evalutor/DomainEncoder.width': [8]}", "refers to evalutor/DomainEncoder.width. Drop"),
        ("sweep.grid = {'GaussianRandomProjection.rank': [8]}", "refers to GaussianRandomProjection.rank. Drop"),
        ("sweep.points = [{'JointCodec.representations': [], 'PCA.rank': 2}]", "refers to PCA.rank. Drop"),
        ("sweep.grid = {'PCA.rank': [1], 'reducers.PCA.rank': [2]}", "PCA.rank and reducers.PCA.rank, which are the"),
        ("sweep.grid = {'sweep.parallel': [1]}", "refers to sweep.parallel. Drop"),
        ("sweep.grid = {'query.seed': [1]}", "refers to query.seed. Drop"),
        ("sweep.grid = {'Representation.reducer': [%REDUCER]}", "the macro %REDUCER is used but not set"),
        ("sweep.grid = {'train.run_dir': ['x']}", "supplied by the library"),
        ("sweep.grid = {'PCA rank': [1]}", "point PCA rank=1 of the sweep: "),
    ],
)
def test_a_mistake_in_a_point_is_named(planned, line, message):
    with pytest.raises(ValueError, match=message):
        planned(line)


def finished(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.gin").write_text(text)
    (folder / "result.json").write_text("{}")


def test_a_point_s_folder_with_another_configuration_is_refused(planned, tmp_path):
    (point, _) = planned("sweep.grid = {'PCA.rank': [1, 2]}")
    finished(point.folder(tmp_path / "sweep"), point.text)
    planned("sweep.grid = {'PCA.rank': [1, 2, 5]}")  # more points, and another rank to store, are no difference
    with pytest.raises(ValueError, match=f"rank=1 holds another configuration:\n  {EULER}: 2 -> 7\nChoose another"):
        planned("sweep.grid = {'PCA.rank': [1, 2]}", f"{EULER} = 7")
    with pytest.raises(ValueError, match="train.num_steps: 2 -> 9"):
        planned("sweep.grid = {'PCA.rank': [1, 2]}", "train.num_steps = 9")
    with pytest.raises(ValueError, match="train.num_steps: 2 -> %STEPS\n  STEPS: .not bound. -> 9"):
        planned("sweep.grid = {'PCA.rank': [1, 2]}", "STEPS = 9", "train.num_steps = %STEPS")


def test_a_point_s_folder_without_results_may_change(planned, tmp_path):
    (point, _) = planned("sweep.grid = {'PCA.rank': [1, 2]}")
    finished(point.folder(tmp_path / "sweep"), point.text)
    (point.folder(tmp_path / "sweep") / "result.json").unlink()
    planned("sweep.grid = {'PCA.rank': [1, 2]}", f"{EULER} = 7")


def test_a_model_of_another_training_is_refused(planned, tmp_path):
    (point,) = planned("sweep.grid = {'ClassifierFree.scale': [1.0]}")
    trained_dir = point.trained_dir(tmp_path / "sweep")
    checkpoint_dir(trained_dir, 2).mkdir(parents=True)
    (trained_dir / "config.gin").write_text(point.text)
    planned("sweep.grid = {'ClassifierFree.scale': [1.0, 3.0]}")
    with pytest.raises(ValueError, match="models/model holds another configuration:\n  train.seed: .* -> 4"):
        planned("sweep.grid = {'ClassifierFree.scale': [1.0]}", "train.seed = 4")


def test_results_without_a_configuration_are_refused(planned, tmp_path):
    (point,) = planned("sweep.grid = {'ClassifierFree.scale': [1.0]}")
    finished(point.folder(tmp_path / "sweep"), "")
    (point.folder(tmp_path / "sweep") / "config.gin").unlink()
    with pytest.raises(ValueError, match="holds results but no config.gin"):
        planned("sweep.grid = {'ClassifierFree.scale': [1.0]}")


def test_the_plan_on_disk(planned, tmp_path):
    points = planned("sweep.grid = {'ClassifierFree.scale': [1.0], 'PCA.rank': [2, 3]}")
    write_plan(tmp_path, points)
    stored = json.loads((tmp_path / "sweep.json").read_text())
    assert stored["name"] == tmp_path.name and stored["axes"] == ["ClassifierFree.scale", "PCA.rank"]
    assert stored["points"][1] == {
        "name": "scale=1.0,rank=3",
        "bindings": {"ClassifierFree.scale": "1.0", "PCA.rank": "3"},
        "model": "rank=3",
        "group": "scale=1.0,rank=3",
    }


# ---- what is shipped


@cache
def shipped(name: str):
    """The plan of a shipped sweep file: made once, for it takes a second."""
    config.parse([name])
    return plan(Path("nowhere"), config.text_without(sweep), **asked())


@pytest.mark.parametrize("name", SHIPPED)
def test_every_point_of_a_shipped_sweep_parses(name):
    points = shipped(name)
    assert len(points) > 1 and all(len(point.name) < 120 for point in points)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_sweep_opens_with_what_it_shows_the_command_and_the_cost(name):
    text = (config.config_dir() / name).read_text()
    assert f"python -m redi.sweep --gin_file={name}" in text and "# Cost: " in text


@pytest.mark.parametrize(("name", "models"), [("guidance", 1), ("digits_guidance", 1), ("pca_rank", 24)])
def test_a_model_is_trained_once_for_all_that_is_sampled_from_it(name, models):
    assert len({point.model for point in shipped(f"sweeps/{name}.gin")}) == models


def test_the_ranks_of_figure_7_share_one_cache():
    points = shipped("sweeps/pca_rank.gin")
    ranks = {point.group: config.statements(point.text).get("PCA.store_rank") for point in points}
    assert set(ranks.values()) == {"32", None} and ranks["plain"] is None
