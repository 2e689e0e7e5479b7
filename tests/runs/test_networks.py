"""Weak networks of autoguidance: from a folder, an earlier step or an average; checked, recorded, and opened once."""

import hashlib
import json
import re
import shutil
from functools import partial

import pytest
import torch
from torch import nn

import redi
from redi.core import config
from redi.core.configurables import import_all
from redi.data.datasets.digits import Digits
from redi.guidance.autoguidance import Autoguidance
from redi.models.transformer import DiffusionTransformer
from redi.runs.average import average
from redi.runs.experiment import Experiment
from redi.runs.job import job
from redi.runs.prepare import prepare_run
from redi.runs.stages import sample_stage, train_stage
from redi.training.trainer import train

import_all()
SETTINGS = ("train.device = 'cpu'", "AdamW.lr = 0.03", "train.warmup_steps = 0", "train.preview_every = 100")
EMA = ("train.ema = @ema.PowerFunctionEMA", "PowerFunctionEMA.snapshot_every = 2")
STEPS = ("train.num_steps = 6", "train.checkpoint_every = 2", "train.keep_every = 2")
GUIDED = "generate.guidance = [@guidance.Autoguidance()]"
UNMEASURED = ("evaluate.networks = None", "evaluate.reference = None", "sample.num_images = 4")
ONE_STEP = redi.samplers.Euler(num_evaluations=1)


@pytest.fixture(scope="module")
def trained(tiny_gin, tmp_path_factory):
    """Trains a run with these bindings, each only once -> its folder."""
    folders: dict = {}

    def trained(*bindings: str):
        if bindings not in folders:
            folders[bindings] = tmp_path_factory.mktemp("runs") / "run"
            with config.isolated():
                config.parse([tiny_gin], [*SETTINGS, *bindings])
                experiment = Experiment(folders[bindings])
                experiment.claim(trains=True)
                train_stage(experiment)
        return folders[bindings]

    return trained


@pytest.fixture(scope="module")
def main(trained):
    """Six steps with a checkpoint and a snapshot of the averages after every second, and an average of its own."""
    folder = trained(*STEPS, *EMA)
    average(folder, 0.08, at_step=4, to=folder / "average")
    return folder


@pytest.fixture(scope="module")
def small(trained):
    return trained("DiffusionTransformer.width = 8", "train.seed = 1")


@pytest.fixture
def sampled(tiny_gin, main, tmp_path):
    """Samples the run `main` with these bindings -> the record of the samples."""

    def sampled(*bindings: str) -> dict:
        config.parse([tiny_gin], [*SETTINGS, *STEPS, *EMA, *UNMEASURED, GUIDED, *bindings])
        experiment = Experiment(tmp_path / "samples of main", main)
        experiment.claim(trains=False)
        sample_stage(experiment)
        return json.loads((experiment.run_dir / "samples/record.json").read_text())

    return sampled


def drawn(run, *rules, **settings):
    return run.generate([3, 7, 1], sampler=ONE_STEP, guidance=rules, **settings)


def opened(folder, **settings):
    return redi.load(folder, device="cpu", **settings)


@pytest.mark.parametrize("weak", ["a folder", "an earlier step", "an average", "the network of a run"])
def test_the_prediction_moves_away_from_the_weak_network(main, small, weak):
    run = opened(main)
    folder, step, settings = {
        "a folder": (small, 2, {"weak": small}),
        "an earlier step": (main, 2, {"step": 2}),
        "an average": (main / "average", 4, {"weak": main / "average"}),
        "the network of a run": (small, 2, {"weak": opened(small).model}),
    }[weak]
    other = opened(folder, step=step)
    plain, away = drawn(run), drawn(other)
    assert other.step == step and not torch.allclose(plain.x, away.x, atol=1e-3)
    # One Euler step is linear in the prediction.
    guided = drawn(run, Autoguidance(1.5, **settings))
    torch.testing.assert_close(guided.x, away.x + 1.5 * (plain.x - away.x), rtol=1e-4, atol=1e-5)
    image = drawn(run, Autoguidance(1.5, groups=("image",), **settings))
    assert torch.equal(image.x[:, :1], guided.x[:, :1]) and torch.equal(image.x[:, 1:], plain.x[:, 1:])
    assert list(guided.record["evaluations_by_network"].values()) == [1.0, 1.0]


def test_a_model_that_guides_itself_is_unguided(main):
    run = opened(main)
    for rule in (Autoguidance(3.0, weak=main), Autoguidance(3.0, weak=run.model)):
        torch.testing.assert_close(drawn(run, rule).x, drawn(run).x, rtol=1e-5, atol=1e-6)


def test_an_earlier_step_is_opened_with_the_bindings_of_the_run(main):
    bindings = ["JointObjective.process = @processes.FlowMatching()", "FlowMatching.margin = 0.01"]
    assert drawn(opened(main, gin_bindings=bindings), Autoguidance(step=2)).x.isfinite().all()


def test_the_weak_network_guides_raw_weights_with_its_averaged_ones(main, small):
    run = opened(main)
    raw, away = drawn(run, weights=run.weights["model"]), drawn(opened(small))
    guided = drawn(run, Autoguidance(2.0, weak=small), weights=run.weights["model"])
    torch.testing.assert_close(guided.x, 2 * raw.x - away.x, rtol=1e-4, atol=1e-5)


def test_a_network_is_opened_once_for_a_set_drawn_in_parts(main, small, caplog):
    caplog.set_level("INFO")
    run, rule = opened(main), Autoguidance(1.5, weak=small)
    parts = [run.generate([3], sampler=ONE_STEP, guidance=[rule], first_index=i).x for i in range(2)]
    both = run.generate([3, 3], sampler=ONE_STEP, guidance=[rule]).x
    torch.testing.assert_close(torch.cat(parts), both, rtol=1e-4, atol=1e-5)
    assert len([record for record in caplog.records if "opening step 2 of" in record.getMessage()]) == 1


def test_the_record_of_the_samples_names_the_network_and_the_hash_of_its_file(sampled, main, small):
    def sha256(checkpoint):
        return hashlib.sha256((checkpoint / "ema.safetensors").read_bytes()).hexdigest()

    [record] = sampled("Autoguidance.step = 2")["networks"].values()
    expected = {"weak": str(main), "step": 2, "trained_steps": 2}
    assert record == expected | {"file_sha256": sha256(main / "checkpoints/step_00000002")}
    assert sampled(f"Autoguidance.weak = '{small}'")["networks"] == {
        str(small): expected
        | {"weak": str(small), "step": None}
        | {"file_sha256": sha256(small / "checkpoints/step_00000002")}
    }


def test_samples_are_drawn_again_when_the_weak_network_has_changed(sampled, trained, small, tmp_path, caplog):
    caplog.set_level("INFO")
    shutil.copytree(small, tmp_path / "weak")
    first = sampled(f"Autoguidance.weak = '{tmp_path / 'weak'}'")
    assert sampled(f"Autoguidance.weak = '{tmp_path / 'weak'}'") == first
    assert "samples with these settings already exist" in caplog.text
    shutil.rmtree(tmp_path / "weak")
    shutil.copytree(trained("DiffusionTransformer.width = 8", "train.seed = 2"), tmp_path / "weak")
    again = sampled(f"Autoguidance.weak = '{tmp_path / 'weak'}'")
    assert again["settings_sha256"] == first["settings_sha256"]
    assert again["samples_sha256"] != first["samples_sha256"] and again["networks"] != first["networks"]


def test_a_finished_job_samples_again_when_the_weak_network_has_changed(tiny_gin, trained, small, tmp_path):
    shutil.copytree(small, tmp_path / "weak")
    config.parse([tiny_gin], [*SETTINGS, *UNMEASURED, GUIDED, f"Autoguidance.weak = '{tmp_path / 'weak'}'"])

    def stages() -> set[str]:
        experiment = Experiment(tmp_path / "run")
        experiment.claim(trains=True)
        return set(job(experiment))

    assert stages() == {"train", "sample", "evaluate"} and stages() == {"train"}
    shutil.rmtree(tmp_path / "weak")
    shutil.copytree(trained("DiffusionTransformer.width = 8", "train.seed = 2"), tmp_path / "weak")
    assert stages() == {"train", "sample", "evaluate"}


UNFIT = {
    "clock": (
        "JointObjective.clock = @clocks.Shift()",
        "trained with .*clock.shift = .'domain': 0.5.* and clock in both runs",
    ),
    "channels": ("PCA.rank = 3", r"channels = Channels\(image=1, domain=3\), but the model has .*domain=2"),
    "codec": ("prepare.num_fit_images = 32", "the codec of the network computes domain differently"),
    "process": ("FlowMatching.reversed = True", "trained with process.reversed = True, but the model with .* = False"),
}


@pytest.mark.parametrize("binding, message", UNFIT.values(), ids=UNFIT)
def test_a_network_that_does_not_fit_is_refused(tiny_gin, trained, main, tmp_path, binding, message):
    further = {
        "FlowMatching": ["JointObjective.process = @processes.FlowMatching()"],
        "JointObjective": ["Shift.shift = {'domain': 0.5}", "DiffusionTransformer.group_timesteps = True"],
    }
    weak = trained(binding, "train.num_steps = 1", *further.get(binding.partition(".")[0], []))
    rule = Autoguidance(weak=weak)
    with pytest.raises(ValueError, match=rf"^Autoguidance.weak = '{re.escape(str(weak))}': .*{message}"):
        drawn(opened(main), rule)
    with pytest.raises(ValueError, match=message):
        drawn(opened(main), Autoguidance(weak=opened(weak).model))
    config.parse([tiny_gin], [*SETTINGS, GUIDED, f"Autoguidance.weak = '{weak}'"])
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=message):  # before the first step
        prepare_run(Experiment(tmp_path / "run"), evaluates=True)


MISSING = {
    "no folder": (["Autoguidance.weak = 'nowhere'"], "weak = 'nowhere': nowhere holds no checkpoints"),
    "no step in a folder": (
        ["Autoguidance.weak = '{small}'", "Autoguidance.step = 1"],
        "step = 1: .* has no checkpoint of step 1, only of 2. .* train.keep_every = 1",
    ),
    "a deleted step": (
        ["Autoguidance.step = 2"],
        "step = 2: training deletes this checkpoint before",
    ),
    "between checkpoints": (["Autoguidance.step = 3"], "must be a multiple of train.checkpoint_every = 2 up to"),
    "beyond the last step": (
        ["Autoguidance.step = 10"],
        "training will write none: must be .* up to train.num_steps = 8",
    ),
    "the model itself": (["Autoguidance.weak = '{run}'"], "this is the run itself, .* bind step to an earlier one"),
    "nothing": ([], "Autoguidance: no network is named: bind weak"),
}


@pytest.mark.parametrize("bindings, message", MISSING.values(), ids=MISSING)
def test_a_network_that_will_not_exist_is_refused_before_anything_is_computed(
    tiny_gin, small, tmp_path, monkeypatch, bindings, message
):
    monkeypatch.setenv("REDI_CACHE", str(tmp_path / "cache"))
    steps = ("train.num_steps = 8", "train.checkpoint_every = 2")
    bindings = [binding.format(small=small, run=tmp_path / "run") for binding in bindings]
    config.parse([tiny_gin], [*SETTINGS, *steps, GUIDED, *bindings])
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=message):
        prepare_run(Experiment(tmp_path / "run"), evaluates=True)
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize(
    "bindings", [["Autoguidance.step = 6"], ["Autoguidance.step = 2", "train.keep_every = 1"]], ids=["last", "kept"]
)
def test_a_step_that_training_keeps_is_accepted(tiny_gin, tmp_path, bindings):
    steps = ("train.num_steps = 8", "train.checkpoint_every = 2")
    config.parse([tiny_gin], [*SETTINGS, *steps, GUIDED, *bindings])
    (tmp_path / "run").mkdir()
    prepare_run(Experiment(tmp_path / "run"), evaluates=True)


def test_a_deleted_step_is_refused_with_the_steps_that_exist(main):
    with pytest.raises(ValueError, match=r"step = 5: .* has no .* step 5, only of 2, 4, 6. .*keep_every = 5"):
        drawn(opened(main), Autoguidance(step=5))


def test_a_model_without_a_run_cannot_open_a_folder(main):
    run = opened(main)
    del run.model.open_network
    with pytest.raises(ValueError, match="pass the network itself, or open the run with redi.load"):
        drawn(run, Autoguidance(weak="runs/small"))
    drawn(run, Autoguidance(weak=run.model))


def test_a_module_of_another_kind_is_refused(main):
    with pytest.raises(ValueError, match="Autoguidance.weak = 'Linear': .*use a model from redi.load"):
        drawn(opened(main), Autoguidance(weak=nn.Linear(1, 1)))


def test_code_that_a_weak_run_imports_is_refused_like_that_of_the_run(main, small, tmp_path):
    shutil.copytree(small, tmp_path / "weak")
    path = tmp_path / "weak/config.gin"
    path.write_text("import strangers_lab\n" + path.read_text())
    with pytest.raises(ValueError, match="strangers_lab"):
        drawn(opened(main), Autoguidance(weak=tmp_path / "weak"))


def test_previews_and_the_monitor_leave_out_the_network_of_another_folder(main, small, tmp_path, caplog):
    caplog.set_level("INFO")
    rules = [Autoguidance(weak=small), redi.guidance.ClassifierFree(2.0)]
    draw = partial(redi.generate, sampler=ONE_STEP, guidance=rules)
    records = []

    def monitor(*arguments, weights):
        records.append(draw(*arguments, weights=weights, labels=[0]).record)
        return {"evaluations": records[-1]["network_evaluations_per_image"]}

    train(
        tmp_path, codec=opened(main).codec, dataset=Digits().without(range(20, 1797)), num_steps=1, batch_size=4,
        model=partial(DiffusionTransformer, width=16, depth=1, num_heads=2, patch_size=4), device="cpu",
        preview=draw, preview_every=1, preview_images=2, monitor=monitor, monitor_every=1, check_memory=False,
    )  # fmt: skip
    assert (tmp_path / "previews/step_00000001.png").exists()
    [record] = records
    assert [rule["name"] for rule in record["guidance"]] == ["ClassifierFree"] and "networks" not in record
    assert record["network_evaluations_per_image"] == 2  # label and null label
    assert "during training: sampling without Autoguidance, whose network is opened afterwards" in caplog.text
