"""The program that makes averages of other lengths: the folders it writes are runs."""

import json
import logging

import pytest
import torch
from absl.testing import flagsaver

import redi
from redi import average, command_line, sample, train
from redi.runtime.checkpoint import list_checkpoints, load_checkpoint

BINDINGS = ("train.ema = @ema.PowerFunctionEMA", "PowerFunctionEMA.snapshot_every = 2", "train.num_steps = 6")


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Runs a program inside this process -> exit status."""
    log = logging.getLogger("redi")
    before = log.handlers[:], log.propagate, log.level
    command_line.FLAGS.mark_as_parsed()

    def call(module, *bindings: str, **flags) -> int:
        flags = {name: value if isinstance(value, list | int) else str(value) for name, value in flags.items()}
        with flagsaver.flagsaver(gin_bindings=list(bindings), **flags):
            return command_line.exit_status(module.main, ["program"])

    yield call
    log.handlers[:], log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.fixture(scope="module")
def run(call, tiny_gin, tmp_path_factory):
    """Six steps, a snapshot after every second."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert call(train, *BINDINGS, gin_file=[tiny_gin], run_dir=folder) == 0
    return folder


def test_every_length_becomes_a_run_that_is_sampled_from(run, call):
    assert call(average, run_dir=run, sigma_rel=["0.08", "0.2"]) == 0
    folders = [run / "averages" / f"sigma_rel_{sigma}_step_00000006" for sigma in ("0.08", "0.2")]
    assert sorted((run / "averages").iterdir()) == folders
    weights = []
    for folder in folders:
        assert call(sample, run_dir=folder) == 0
        record = json.loads((folder / "samples" / "record.json").read_text())
        assert (record["weights"], record["checkpoint_step"]) == ("ema", 6)
        weights.append(record["weights_sha256"])
    assert len(set(weights)) == 2
    opened = redi.load(folders[0], device="cpu")
    expected = redi.reconstruct_average(run, 0.08).parameters
    assert all(torch.equal(parameter, expected[name]) for name, parameter in opened.model.named_parameters())
    assert opened.record["average"]["sigma_rel"] == 0.08 and opened.record["seed"] == 0


def test_an_average_of_an_earlier_step_is_written_where_run_dir_says_and_again(run, call, tmp_path):
    to = tmp_path / "earlier"
    for sigma_rel in ("0.1", "0.05"):  # the second replaces the first
        assert call(average, trained_dir=run, run_dir=to, sigma_rel=[sigma_rel], at_step=4) == 0
        [checkpoint] = list_checkpoints(to)
        tensors, record = load_checkpoint(checkpoint)
        assert (record["step"], record["average"]["sigma_rel"]) == (4, float(sigma_rel))
        assert set(tensors) == {"ema", "codec", "colours"}
    assert not (run / "averages" / "sigma_rel_0.05_step_00000004").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sigma_rel": []}, "--sigma_rel is missing: pass the lengths of the averages, for example"),
        ({"sigma_rel": ["wide"]}, "--sigma_rel=wide: pass numbers separated by commas"),
        ({"sigma_rel": ["0.5"]}, "sigma_rel: the length 0.5 of an average must be"),
        ({"sigma_rel": ["0.1"], "at_step": 5}, "no snapshot of step 5; the nearest are"),
    ],
)
def test_what_cannot_be_made_is_refused(run, call, capsys, flags, message):
    assert call(average, run_dir=run, **flags) == 1
    assert f"error: {message}" in capsys.readouterr().err.replace(f" in {run}", "")


def test_another_run_is_not_overwritten(run, call, capsys):
    before = list_checkpoints(run)
    assert call(average, trained_dir=run / ".." / "run", run_dir=run, sigma_rel=["0.1"]) == 1
    assert "holds a trained run: choose another folder" in capsys.readouterr().err
    assert list_checkpoints(run) == before


def test_an_average_is_not_trained_on_but_a_training_can_begin_with_it(run, call, tiny_gin, capsys, tmp_path):
    assert call(average, trained_dir=run, run_dir=tmp_path / "average", sigma_rel=["0.1"]) == 0
    longer = (*BINDINGS[:2], "train.num_steps = 8")
    assert call(train, *longer, gin_file=[tiny_gin], run_dir=tmp_path / "average") == 1
    assert (
        "holds no optimizer state, because it was imported or averaged: to continue training, start a new run"
        in capsys.readouterr().err
    )
    begun = f"train.initial_weights = '{tmp_path / 'average'}'"
    assert call(train, *longer, begun, gin_file=[tiny_gin], run_dir=tmp_path / "begun") == 0


def test_how_often_snapshots_are_taken_is_no_other_configuration(run, call, tiny_gin):
    often = ("PowerFunctionEMA.snapshot_every = 3", "PowerFunctionEMA.snapshot_dtype = 'float32'")
    assert call(train, BINDINGS[0], *often, "train.num_steps = 7", gin_file=[tiny_gin], run_dir=run) == 0
    assert max(int(folder.name[-8:]) for folder in list_checkpoints(run)) == 7
