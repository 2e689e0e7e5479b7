"""Schedules, compared with torch's, which follow the steps one by one."""

import math
import re

import pytest
import torch
from torch.optim import lr_scheduler

from redi.training.schedules import Constant, Cooldown, Cosine, Linear

RATE, LENGTH = 0.3, 20


def rates(schedule, num_steps=LENGTH + 1):
    """The learning rates of torch's scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler, found = schedule(optimizer), []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


THEIRS = {
    "constant": (Constant(), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    "cosine": (Cosine(LENGTH, end=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, LENGTH, eta_min=0.1 * RATE)),
    "cosine to zero": (Cosine(LENGTH, end=0.0), lambda o: lr_scheduler.CosineAnnealingLR(o, LENGTH)),
    "linear": (
        Linear(LENGTH, end=0.25),
        lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.25, total_iters=LENGTH),
    ),
    "cooldown": (
        Cooldown(LENGTH, share=0.4, end=0.1),
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.ConstantLR(o, factor=1.0),
                lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=8),
            ],
            milestones=[12],
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs"), THEIRS.values(), ids=THEIRS)
def test_the_rates_are_those_of_torch(ours, theirs):
    assert [RATE * ours(step) for step in range(LENGTH + 1)] == pytest.approx(rates(theirs), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("schedule", [Cosine(LENGTH), Linear(LENGTH), Cooldown(LENGTH)])
def test_after_its_length_a_schedule_stays_at_its_end(schedule):
    assert schedule(LENGTH - 1) > 0.1 == pytest.approx(schedule(LENGTH)) == pytest.approx(schedule(10 * LENGTH))


BAD = {
    "no steps": (lambda: Cosine(0), "Cosine.num_steps = 0 must be an integer of at least 1"),
    "half a step": (lambda: Linear(2.5), "Linear.num_steps = 2.5 must be an integer"),
    "an end below zero": (lambda: Cosine(9, end=-0.1), "Cosine.end = -0.1 must be a finite number of at"),
    "no decay": (lambda: Linear(9, end=1.0), "less than 1 (schedules.Constant has no decay)"),
    "no number": (lambda: Cooldown(9, end=math.nan), "Cooldown.end = nan must be a finite number"),
    "no share": (lambda: Cooldown(9, share=0.0), "Cooldown.share = 0.0: must be greater than 0 and at most 1"),
    "too large a share": (lambda: Cooldown(9, share=1.5), "Cooldown.share = 1.5: must be greater than 0"),
}


@pytest.mark.parametrize(("build", "message"), BAD.values(), ids=BAD)
def test_what_cannot_work_is_refused_with_the_binding(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()
