"""Gradients that are not finite, and data that do not come: what a training says and does, seen from outside."""

import json
import re

import pytest
import torch

from redi.runtime.checkpoint import list_checkpoints, load_checkpoint

# Steps counted from 0. A NaN at 5, an infinite gradient at 9, then nothing but faults from 32 on.
LINES = """
import chaos_parts
train.num_steps = 60
train.batch_size = 12
train.checkpoint_every = 10
train.max_skipped_steps = 3
train.stalled_seconds = 0.3
train.dataset = @datasets.StallingDigits()
StallingDigits.split = 'train'
StallingDigits.held_out_fraction = 0.9
StallingDigits.batch_size = 12
StallingDigits.stalled_batch = 20
StallingDigits.stalled_for = 1.0
prepare.cache = False
train.model = @PoisonedTransformer
PoisonedTransformer.size = 'S/4'
PoisonedTransformer.width = 16
PoisonedTransformer.depth = 1
PoisonedTransformer.num_heads = 2
"""
SKIPPED, FIRST_BAD = {5: "nan_steps", 9: "inf_steps"}, 32


@pytest.fixture(
    scope="module", params=["nan_steps", pytest.param("inf_steps", marks=pytest.mark.chaos)], ids=["NaN", "inf"]
)
def stopped(request, make_training):
    """A training that stalls once, has two bad steps, and then only bad ones of one kind -> it, its exit status."""
    bad = {kind: [step for step, of in SKIPPED.items() if of == kind] for kind in ("nan_steps", "inf_steps")}
    bad[request.param] += range(FIRST_BAD, 60)
    training = make_training(LINES, *(f"PoisonedTransformer.{kind} = {steps}" for kind, steps in bad.items()))
    return training, training.finish()


def test_a_few_gradients_that_are_not_finite_are_skipped_and_counted(stopped, report):
    training, _ = stopped
    lines = {line["step"]: line for line in training.lines()}
    assert [step for step, line in lines.items() if line.get("skipped_steps") and step <= FIRST_BAD] == [6, 10]
    for step in range(11, FIRST_BAD + 1):
        assert 0 < lines[step]["loss"] < 10
    for step in SKIPPED:
        assert re.search(rf"step {step + 1}\b.*(skipped|not finite)", training.said())
        report.add("one process", "one gradient of NaN or inf", survived=True)


def test_too_many_end_the_training_and_say_where_with_what_and_in_which_module(stopped, report):
    training, status = stopped
    assert status == 1
    error = training.said().rpartition("error: ")[2]
    assert "Traceback" not in training.said()
    assert re.search(r"[Ss]tep 3[3-7]\b", error)
    assert re.search(r"digit \d{4}", error)
    assert "blocks.0.mlp" in error
    (found,) = training.run_dir.glob("nonfinite_step_*.json")
    assert found.name in error
    assert "blocks.0.mlp" in json.dumps(json.loads(found.read_text()))
    report.add("one process", "gradients of NaN or inf without end", survived=True)


def test_the_checkpoint_it_leaves_is_from_before_and_finite(stopped):
    training, _ = stopped
    newest = list_checkpoints(training.run_dir)[-1]
    assert newest.name in training.said().rpartition("error: ")[2]
    tensors, record = load_checkpoint(newest)
    assert record["step"] == 30
    for group in ("model", "ema", "optimizer"):
        assert all(torch.isfinite(tensor).all() for tensor in tensors[group].values())


def test_data_that_do_not_come_are_named_while_it_waits(stopped, report):
    training, _ = stopped
    assert re.search(r"waiting for data", training.said())
    report.add("one process", "a batch that is late", survived=True)
