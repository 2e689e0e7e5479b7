"""Damaged, missing and full: what became of the files of a run is found, said, and made good by the same command."""

import random
import re
import shutil
import signal
from pathlib import Path

import pytest
from chaos_damage import KINDS, damage, fill
from chaos_driver import Training, compared, send
from PIL import Image

from redi.runtime.checkpoint import list_checkpoints

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(make_training, report):
    lines = "train.num_steps = 1000", "train.checkpoint_every = 25", "train.keep_checkpoints = 3"
    unbroken, broken = make_training(*lines), make_training(*lines)
    assert unbroken.finish() == 0, unbroken.said()
    generator = random.Random(3)
    for number in range(20):
        outcome = broken.suffer(send(signal.SIGTERM, 40 + 45 * number))
        assert outcome.status == 143 and outcome.damage == [], broken.said()[-3000:]
        newest, before = list_checkpoints(broken.run_dir)[-1], list_checkpoints(broken.run_dir)[-2]
        file, kind = generator.choice(sorted(newest.iterdir())), KINDS[number % len(KINDS)]
        damage(file, kind, generator)
        lost, last = _step(newest) - _step(before), len(broken.said())
        outcome = broken.suffer(send(signal.SIGTERM, _step(before) + 1))
        said = broken.said()[last:]
        assert outcome.status == 143, said[-3000:]
        if newest.name in said.split("resuming from")[0]:  # it was refused, by name
            assert f"resuming from {before}" in said
        else:  # a bit that decides nothing: a space of a record
            assert file.suffix == ".json" and kind == "bit flip", (file, kind, said[-3000:])
            lost = 0
        report.add("one process", f"{kind} in the newest checkpoint", survived=True, steps_lost=lost)
    assert broken.finish() == 0, broken.said()[-3000:]
    assert compared(broken, unbroken) == []


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def test_damaged_fits_and_caches_are_made_again(make_training, report, tmp_path):
    cache = tmp_path / "cache"
    lines = "train.num_steps = 10", f"prepare.cache_dir = '{cache}'"
    unbroken = make_training(*lines)
    assert unbroken.finish() == 0, unbroken.said()
    shutil.copytree(cache, tmp_path / "whole")
    generator = random.Random(4)
    files = sorted(path.relative_to(cache) for path in cache.rglob("*") if path.is_file() and path.stat().st_size)
    assert {path.parts[0] for path in files} >= {"encoders", "reducers", "encoded"}
    for file in files:
        for kind in KINDS:
            damage(cache / file, kind, generator)
            again = make_training(*lines)
            assert again.finish() == 0, (file, kind, again.said()[-3000:])
            assert compared(again, unbroken) == [], (file, kind)
            what = "a cache" if file.parts[0] == "encoded" else "a fit"
            report.add("one process", f"{kind} in {what}", survived=True)
            shutil.rmtree(cache)
            shutil.copytree(tmp_path / "whole", cache)


@pytest.mark.parametrize("free_kib", [0, 4, 40, 100, 200, 400])
def test_a_full_disk_ends_training_and_the_same_command_goes_on(free_kib, disk, make_training, report):
    lines = "train.num_steps = 200", "train.checkpoint_every = 20", "train.keep_checkpoints = 2"
    unbroken, full = make_training(*lines), make_training(*lines)
    assert unbroken.finish() == 0, unbroken.said()
    full.run_dir = disk / "run"
    assert full.suffer(send(signal.SIGTERM, 50)).status == 143, full.said()[-3000:]
    ballast = fill(disk, free_kib * 1024)
    status = full.finish()
    if status == 0:  # it was room enough
        assert free_kib >= 100
    else:
        assert status == 1 and "Traceback" not in full.said(), full.said()[-3000:]
        assert re.search(r"[Nn]o space", full.said().rpartition("error: ")[2])
    assert not list(full.run_dir.glob("**/*.partial"))
    full.lines()
    ballast.unlink()
    assert full.finish() == 0, full.said()[-3000:]
    assert compared(full, unbroken) == []
    report.add("one process", "a full disk", survived=True)


def test_an_image_that_vanishes_is_named_and_the_same_command_goes_on(make_training, report, tmp_path):
    from redi.data.datasets.digits import Digits

    digits = Digits().without(range(60, 1797))
    for position, name in enumerate(digits.names):
        path = tmp_path / "images" / str(digits.labels[position]) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.load(position)).save(path)
    lines = (
        "train.num_steps = 600", "train.checkpoint_every = 25", "prepare.cache = False",
        "train.dataset = @datasets.ImageFolder()", f"ImageFolder.path = '{tmp_path / 'images'}'",
    )  # fmt: skip
    unbroken, robbed = make_training(*lines), make_training(*lines)
    assert unbroken.finish() == 0, unbroken.said()
    path = sorted((tmp_path / "images").rglob("*.png"))[7]
    away = tmp_path / path.name

    def vanish(training: Training, process) -> str:
        training.wait(process, training.reaches(60))
        path.rename(away)
        return "an image that vanishes"

    outcome = robbed.suffer(vanish)
    assert outcome.status == 1 and outcome.damage == [], robbed.said()[-3000:]
    assert path.name in robbed.said().rpartition("error: ")[2]
    away.rename(path)
    assert robbed.finish() == 0, robbed.said()[-3000:]
    differences = compared(robbed, unbroken)
    report.add("one process", outcome.fault, survived=not differences, steps_lost=outcome.steps_lost)
    assert differences == []
