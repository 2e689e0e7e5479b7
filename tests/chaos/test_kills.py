"""Trainings that are killed, in steps, in checkpoints and while they start, end as if nothing had happened."""

import random
import signal

import pytest
from chaos_driver import compared, kill_at_step, kill_in_checkpoint, kill_while_starting, send

SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130}
LONG = [pytest.mark.chaos, pytest.mark.timeout(3600)]
SHORT = [pytest.mark.timeout(900)]


def faults_of(kills: int, num_steps: int, stops: list[signal.Signals], seed: int) -> list:
    """`kills` SIGKILLs and the given signals, in random order and at random steps, later and later ones."""
    generator = random.Random(seed)
    kinds = [*stops, *("checkpoint" if number % 3 == 1 else "step" for number in range(kills))]
    kinds = ["start" if kind == "step" and generator.random() < 0.15 else kind for kind in kinds]
    generator.shuffle(kinds)
    steps = sorted(generator.randrange(1, int(0.9 * num_steps)) for _ in kinds)
    faults = []
    for kind, step in zip(kinds, steps, strict=True):
        if kind == "start":
            faults.append(kill_while_starting(generator))
        elif kind == "checkpoint":
            faults.append(kill_in_checkpoint(step, generator))
        elif kind == "step":
            faults.append(kill_at_step(step, generator))
        else:
            faults.append(send(kind, step))
    return faults


@pytest.mark.parametrize(
    ("kills", "stops", "num_steps"),
    [
        pytest.param(1, [signal.SIGTERM], 80, id="short", marks=SHORT),
        pytest.param(50, [*SIGNALS] * 10, 2000, id="long", marks=LONG),
    ],
)
def test_a_training_that_is_killed_and_stopped_ends_as_an_unbroken_one(kills, stops, num_steps, make_training, report):
    lines = f"train.num_steps = {num_steps}", "train.checkpoint_every = 25"
    unbroken = make_training(*lines)
    assert unbroken.finish() == 0, unbroken.said()

    broken = make_training(*lines)
    outcomes = []
    for fault in faults_of(kills, num_steps, stops, seed=kills):
        outcome = broken.suffer(fault)
        outcomes.append(outcome)
        number = getattr(signal, outcome.fault, None)
        assert outcome.status == SIGNALS.get(number, -signal.SIGKILL), broken.said()[-3000:]
        assert outcome.damage == []
        if number is not None:  # asked to stop, it writes a checkpoint of where it is
            assert outcome.steps_lost == 0
        assert outcome.steps_lost <= 25
    assert broken.finish() == 0, broken.said()[-3000:]
    differences = compared(broken, unbroken)
    for outcome in outcomes:
        report.add(
            "one process", outcome.fault, survived=not differences, steps_lost=outcome.steps_lost,
            verified=outcome.checkpoints, corrupted=len(outcome.damage),
        )  # fmt: skip
    assert differences == []
