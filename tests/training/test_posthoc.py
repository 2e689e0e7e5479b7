"""Averages computed after training, compared with averages tracked during training."""

import shutil
from functools import partial

import pytest
import torch

from redi.core.ema import EMA, PowerFunctionEMA
from redi.core.ema.power_function import stored_averages
from redi.data.datasets.digits import Digits
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec
from redi.models.transformer import DiffusionTransformer
from redi.runtime.artefact import save_artefact
from redi.runtime.checkpoint import list_checkpoints, load_checkpoint
from redi.training.posthoc import reconstruct_average
from redi.training.snapshots import drop_snapshots, list_snapshots, load_snapshot, save_snapshot
from redi.training.trainer import ADAMW, train

MODEL = partial(DiffusionTransformer, width=16, depth=1, num_heads=2, patch_size=4)
STEPS, HALF = 120, 60
OTHERS = (0.03, 0.07, 0.15, 0.2)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Trains on the digits themselves; returns the run's folder."""
    images = Digits().without(range(200, 1438))
    folder = tmp_path_factory.mktemp("runs")

    def start(name, ema, **settings):
        defaults = {"num_steps": STEPS, "batch_size": 8, "checkpoint_every": HALF, "preview_every": 10_000}
        defaults["check_memory"] = False
        codec = JointCodec(autoencoder=Pixels(channels=1))
        train(
            folder / name, codec=codec, dataset=images, model=MODEL, ema=ema, device="cpu",
            optimizer=partial(ADAMW, lr=3e-3), **defaults | settings,
        )  # fmt: skip
        return folder / name

    start.folder = folder
    return start


@pytest.fixture(scope="module")
def run(start):
    """A run with the two averages of the paper and 24 snapshots in full precision, stopped half-way and resumed."""
    ema = partial(PowerFunctionEMA, snapshot_every=5, snapshot_dtype="float32")
    start("run", ema, num_steps=HALF)
    return start("run", ema)


@pytest.fixture(scope="module")
def halves(run, tmp_path_factory):
    """The same with snapshots in half precision."""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("runs") / "halves")
    for step, path in list_snapshots(folder).items():
        groups = load_snapshot(path)
        save_snapshot(folder, step, {key: {k: t.half() for k, t in group.items()} for key, group in groups.items()}, {})
    return folder


@pytest.fixture(scope="module")
def tracked(start):
    """The same run without interruption, with the target averages: {step: {sigma_rel: average}}."""
    folder = start("tracked", partial(PowerFunctionEMA, sigma_rels=(0.05, 0.1, *OTHERS), snapshot_every=0))
    assert not list_snapshots(folder)
    return {int(path.name[-8:]): averages_in(path) for path in list_checkpoints(folder)}


def averages_in(checkpoint) -> dict:
    """{sigma_rel: average}, and the weights themselves as "raw"."""
    tensors, _ = load_checkpoint(checkpoint)
    return stored_averages(tensors["ema"], tensors["averages"]) | {"raw": tensors["model"]}


def distance(a, b) -> float:
    return sum(float((a[name].double() - b[name].double()).square().sum()) for name in a) ** 0.5


@pytest.mark.parametrize("step", [HALF, STEPS])
@pytest.mark.parametrize(
    ("sigma_rel", "full", "half"), [(0.03, 5e-3, 3e-2), (0.07, 2e-4, 2e-3), (0.15, 2e-4, 1e-3), (0.2, 4e-3, 4e-3)]
)
def test_an_average_made_afterwards_is_the_one_tracked_in_training(run, halves, tracked, sigma_rel, full, half, step):
    expected, raw = tracked[step][sigma_rel], tracked[step]["raw"]
    for folder, most in ((run, full), (halves, half)):
        found = reconstruct_average(folder, sigma_rel, at_step=step)
        assert (found.sigma_rel, found.step) == (sigma_rel, step)
        # As a part of how far averaging moves the weights; half-way there were half as many snapshots.
        error = distance(found.parameters, expected) / distance(expected, raw)
        assert error < most * (1 if step == STEPS else 20)
        others = [distance(tracked[step][other], expected) / distance(expected, raw) for other in (0.05, 0.1)]
        assert error < min(others) / 5  # and no other average would do


def test_stopped_and_resumed_all_averages_are_bit_equal_to_those_of_one_go(run, tracked):
    found = averages_in(list_checkpoints(run)[-1])
    assert set(found) == {0.05, 0.1, "raw"}
    for key, average in found.items():
        assert all(torch.equal(tensor, tracked[STEPS][key][name]) for name, tensor in average.items())


def test_an_average_that_was_tracked_comes_back_as_it_was(run, tracked):
    found = reconstruct_average(run, 0.1)
    assert found.step == STEPS
    torch.testing.assert_close(found.parameters, dict(tracked[STEPS][0.1]), rtol=0, atol=1e-6)


def test_it_says_what_an_average_was_made_of(run):
    record = reconstruct_average(run, 0.07, at_step=10).provenance()
    assert [(sigma, step) for sigma, step, _ in record["of"]] == [(0.05, 5), (0.1, 5), (0.05, 10), (0.1, 10)]
    assert sum(weight for *_, weight in record["of"]) == pytest.approx(1, abs=1e-9)


def test_a_length_that_the_snapshots_cannot_give_is_warned_of(run, caplog):
    found = reconstruct_average(run, 0.01)
    assert found.combination.error > 0.05
    assert "sigma_rel = 0.01 at step 120: the best combination of 48 averages has an error of" in caplog.text
    caplog.clear()
    reconstruct_average(run, 0.07)
    assert not caplog.text


def test_a_step_of_which_nothing_is_stored_is_refused(run):
    with pytest.raises(ValueError, match="no snapshot of step 58 .* the nearest are 50, 55, 60, 65"):
        reconstruct_average(run, 0.07, at_step=58)


def test_a_run_without_such_averages_is_refused(start):
    folder = start("exponential", partial(EMA, decay=0.9), num_steps=2)
    with pytest.raises(ValueError, match="was not trained with power-function averages.*= ema.PowerFunctionEMA"):
        reconstruct_average(folder, 0.07)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoints"):
        reconstruct_average(tmp_path, 0.07)


def test_a_damaged_snapshot_is_named_and_can_be_done_without(run, tracked, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    damaged = list_snapshots(folder)[100] / "sigma_rel_0.1.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"step_00000100/sigma_rel_0.1.safetensors was altered.*Delete .*step_00000100"
    ):
        reconstruct_average(folder, 0.07)
    shutil.rmtree(damaged.parent)
    found = reconstruct_average(folder, 0.07)
    assert found.combination.error > reconstruct_average(run, 0.07).combination.error
    expected = tracked[STEPS][0.07]
    assert distance(found.parameters, expected) < 2e-3 * distance(expected, tracked[STEPS]["raw"])


def test_a_snapshot_of_another_model_is_refused(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    groups = {key: {"other": torch.zeros(3)} for key in ("sigma_rel_0.05", "sigma_rel_0.1")}
    save_snapshot(folder, 20, groups, {})
    with pytest.raises(ValueError, match="step_00000020 is from another model than earlier snapshots"):
        reconstruct_average(folder, 0.07)
    save_snapshot(folder, 20, {"sigma_rel_0.2": {"other": torch.zeros(3)}}, {})
    with pytest.raises(ValueError, match=r"step_00000020 holds averages of sigma_rels = \(0.2,\), but the run has"):
        reconstruct_average(folder, 0.07)


# ---- snapshots


def test_a_weight_beyond_half_precision_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"step 4: a is not finite as float16: set .*snapshot_dtype = 'float32'"):
        save_snapshot(tmp_path, 4, {"sigma_rel_0.05": {"a": torch.tensor([1.0, 70_000.0]).half()}}, {})
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_with_the_next_snapshot(tmp_path):
    leftover = tmp_path / "snapshots" / ".step_00000004.0123456789ab.partial"
    leftover.mkdir(parents=True)
    save_snapshot(tmp_path, 4, {"sigma_rel_0.05": {"a": torch.ones(1)}}, {})
    assert not leftover.exists() and list(list_snapshots(tmp_path)) == [4]


def test_something_else_is_no_snapshot(tmp_path):
    save_artefact(tmp_path / "snapshots" / "step_00000004", {"a": {"b": torch.ones(1)}}, {"format": "another"})
    with pytest.raises(ValueError, match="step_00000004 is not a snapshot of this version of redi"):
        load_snapshot(tmp_path / "snapshots" / "step_00000004")


def test_a_training_drops_the_snapshots_that_lie_ahead_of_it(start, tmp_path):
    for step in (10, 20, 30):
        save_snapshot(tmp_path, step, {"sigma_rel_0.05": {"a": torch.ones(1)}}, {})
    drop_snapshots(tmp_path, after=20)
    assert list(list_snapshots(tmp_path)) == [10, 20]
    # And so does `train`, also where it begins: these are of a training that left no checkpoint.
    shutil.copytree(tmp_path / "snapshots", start.folder / "anew" / "snapshots")
    folder = start("anew", partial(PowerFunctionEMA, snapshot_every=2), num_steps=2)
    assert list(list_snapshots(folder)) == [2]
    save_snapshot(folder, 3, {"sigma_rel_0.05": {"a": torch.ones(1)}}, {})
    start("anew", partial(PowerFunctionEMA, snapshot_every=2), num_steps=3)
    assert list(list_snapshots(folder)) == [2]
