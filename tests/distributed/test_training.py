"""One, two and four processes train the same model, in real processes over gloo."""

import json
from itertools import pairwise

import pytest
import torch

from redi.runtime.checkpoint import ended_early, list_checkpoints, load_checkpoint, step_of
from redi.runtime.distributed import Processes
from redi.runtime.log import read_log
from redi.training.snapshots import list_snapshots, load_snapshot
from tests.distributed.trainings import trained

# The sums of a step are taken in another order: some units in the last place of float32.
LOSS, WEIGHTS = {"rtol": 2e-6, "atol": 1e-6}, {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, started):
    """One process by itself; then two and four, in all ways; and runs that went from one number to another.

    -> their folder, and what was printed by two processes and by four.
    """
    folder = tmp_path_factory.mktemp("runs")

    def trained_by(processes: int, **trainings: dict) -> str:
        return started(processes, "trainings.py", str(folder), json.dumps(trainings))

    online, aligned, muon = {"cached": False}, {"aligned": True}, {"optimizer": "Muon", "model": "modern"}
    averaged, probe, predicted = {"ema": "PowerFunctionEMA"}, {"objective": "probe"}, {"predicted": True}
    by_one = {"1": {}, "1 online": online, "1 averaged": averaged, "1 aligned": aligned, "1 Muon": muon}
    # A projection, with a batch norm. Adam would turn the rounding of a gradient of 0, that of its lengths, into steps.
    learned = {"learned": True, "optimizer": "SGD"}
    by_one |= {"1 learned": learned, "1 predicted": predicted, "1 probe": probe}
    by_one |= {"1 to 2": {"num_steps": 2}, "1 Muon to 2 FSDP": muon | {"num_steps": 2}}
    for name, settings in by_one.items():
        trained(folder / name, **settings)
    fsdp = {"parallel": "FSDP"}
    by_two = trained_by(
        2,
        **{
            "2 accumulate": {"accumulate": 2}, "2 FSDP accumulate": fsdp | {"accumulate": 4}, "2 online": online,
            "2 averaged": fsdp | averaged, "2 Muon": muon, "2 probe": probe, "1 Muon to 2 FSDP": fsdp | muon,
            "1 to 2": {}, "2 to 1": fsdp | {"num_steps": 2},
            "2 FSDP to 4": fsdp | {"num_steps": 2}, "2 aligned": aligned | {"accumulate": 2},
            "2 predicted": predicted | {"accumulate": 2}, "2 FSDP predicted": predicted | fsdp,
            "2 learned": learned | {"accumulate": 2},
            "2 FSDP aligned": aligned | fsdp, "2 ended": {"on_log": "ends at 2", "num_steps": 8},
        },
    )  # fmt: skip
    by_four = trained_by(4, **{"4": {}, "2 FSDP to 4": fsdp})
    trained(folder / "2 to 1")
    return folder, by_two, by_four


@pytest.fixture
def folder(runs):
    return runs[0]


def test_two_processes_end_at_the_same_step_where_on_log_asks_the_first(folder):
    *_, last = list_checkpoints(folder / "2 ended")
    assert 2 < step_of(last) < 8 and ended_early(folder / "2 ended")


def end(run_dir) -> dict[str, dict[str, torch.Tensor]]:
    return load_checkpoint(list_checkpoints(run_dir)[-1])[0]


ALIKE = {
    "1": ["2 accumulate", "2 FSDP accumulate", "4", "1 to 2", "2 to 1", "2 FSDP to 4"],
    "1 online": ["2 online"],
    "1 averaged": ["2 averaged"],
    "1 aligned": ["2 FSDP aligned", "2 aligned"],
    "1 predicted": ["2 predicted", "2 FSDP predicted"],
    "1 learned": ["2 learned"],
    "1 probe": ["2 probe"],
    "1 Muon": ["2 Muon", "1 Muon to 2 FSDP"],
}
PAIRS = [(one, other) for one, others in ALIKE.items() for other in others]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_the_curve_of_all_losses_is_the_same(folder, one, other):
    curve, expected = read_log(folder / other), read_log(folder / one)
    assert [line["step"] for line in curve] == [1, 2, 3, 4]
    for line, by_one in zip(curve, expected, strict=True):
        assert line.keys() == by_one.keys()
        for name in {"loss", "image", "domain", "alignment", "gradient_norm", "learning_rate"} & by_one.keys():
            torch.testing.assert_close(line[name], by_one[name], **LOSS)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_weights_averages_and_optimizer_end_alike(folder, one, other):
    found, expected = end(folder / other), end(folder / one)
    assert found.keys() == expected.keys()
    for group in expected:
        # Muon makes all singular values of an update 1, and so enlarges the rounding of small ones.
        tolerance = WEIGHTS | ({"atol": 1e-5} if "Muon" in one else {})
        torch.testing.assert_close(found[group], expected[group], **tolerance)
    for name, tensor in found["optimizer"].items():
        if name.endswith("/step"):
            # REPA's term ends at step 2; the network and the curves of a probe take turns.
            half = "probe" in one or (name.startswith("projector.") and one == "1 aligned")
            assert tensor == (2 if half else 4), name


def test_other_batches_would_be_noticed(folder):
    """The tolerance above detects another order or other noise, because steps differ by far more."""
    values = [line["loss"] for line in read_log(folder / "1")]
    assert min(abs(a - b) for a, b in pairwise(values)) > 100 * LOSS["rtol"] * max(values)


def test_a_checkpoint_of_fsdp_has_the_files_of_any_other(folder):
    one, other = (list_checkpoints(folder / name)[-1] for name in ("1", "2 FSDP accumulate"))
    assert {path.name for path in other.iterdir()} == {path.name for path in one.iterdir()}
    assert not list((folder / "2 FSDP accumulate" / "checkpoints").glob(".*"))


def test_snapshots_of_averages_are_those_of_one_process(folder):
    one, other = (list_snapshots(folder / name) for name in ("1 averaged", "2 averaged"))
    assert one.keys() == other.keys() == {2, 4}
    for step in one:
        expected, found = load_snapshot(one[step]), load_snapshot(other[step])
        assert found.keys() == expected.keys()
        for group in expected:
            torch.testing.assert_close(found[group], expected[group], rtol=2e-3, atol=1e-5)  # of float16


def test_previews_are_those_of_one_process(folder):
    for name in ("2 accumulate", "2 FSDP accumulate"):
        for picture in (folder / "1" / "previews").iterdir():
            assert (folder / name / "previews" / picture.name).exists()


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="train.batch_size = 8.* is not divisible by 3 processes"):
        Processes(0, 3).check(8, 1)
    with pytest.raises(ValueError, match="4 processes x train.accumulate = 4"):
        Processes(0, 4).check(8, 4)
    Processes(0, 4).check(8, 2)


def test_the_number_of_processes_is_recorded_and_its_change_logged(runs):
    folder, _, by_four = runs
    assert load_checkpoint(list_checkpoints(folder / "4")[-1])[1]["processes"] == 4
    assert "the checkpoint was written by 2 processes; resuming with 4" in by_four


def test_the_process_whose_numbers_are_not_finite_is_named_though_fsdp_spreads_them(runs):
    _, by_two, _ = runs
    assert by_two.count("told: rank 1: 1 steps had a non-finite gradient") == 2
    assert "the model's input is not finite (images " in by_two
