"""Sampling that is killed, whose parts are damaged and whose disk is full ends with the images of an unbroken one."""

import random
import re
import shutil
import time

import pytest
from chaos_damage import KINDS, damage, fill
from chaos_driver import Training

from redi.evaluation.samples.stored import load_samples

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]
LINES = (
    "train.num_steps = 5", "sample.num_images = 2000", "sample.images_per_part = 50", "generate.batch_size = 50",
    "EulerMaruyama.num_evaluations = 40",
)  # fmt: skip


def parts(run: Training) -> list:
    """The files of a sampling that is not finished."""
    return sorted(run.run_dir.glob(".samples.*.work/samples/part-*.safetensors"))


@pytest.fixture(scope="module")
def trained(make_training) -> Training:
    """A run that has samples."""
    run = make_training(*LINES)
    assert run.finish() == 0 and run.finish("sample") == 0, run.said()
    return run


@pytest.fixture
def broken(trained, make_training) -> Training:
    """The same run without samples."""
    run = make_training(*LINES)
    shutil.copytree(trained.run_dir, run.run_dir, ignore=shutil.ignore_patterns("samples*", ".samples*"))
    return run


def killed_after(run: Training, count: int, generator: random.Random) -> None:
    process = run.start("sample")
    run.wait(process, lambda: len(parts(run)) >= count)
    time.sleep(generator.uniform(0.0, 0.05))
    process.kill()
    process.wait()


def test_sampling_that_is_killed_goes_on(trained, broken, report):
    generator = random.Random(5)
    for count in sorted(generator.sample(range(1, 36), 10)):
        killed_after(broken, count, generator)
    assert broken.finish("sample") == 0, broken.said()
    samples = load_samples(broken.run_dir)
    samples.verify()
    same = samples.sha256 == load_samples(trained.run_dir).sha256
    for _ in range(10):
        report.add("sampling", "SIGKILL", survived=same)
    assert same
    assert not list(broken.run_dir.glob(".samples*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_part_is_drawn_again(kind, trained, broken, report):
    generator = random.Random(kind)
    killed_after(broken, 5, generator)
    file = generator.choice(parts(broken)[:5])
    damage(file, kind, generator)
    assert broken.finish("sample") == 0, broken.said()
    assert f"made again, for it was damaged: {file.stem}" in broken.said()
    same = load_samples(broken.run_dir).sha256 == load_samples(trained.run_dir).sha256
    report.add("sampling", f"{kind} in a part", survived=same)
    assert same


@pytest.mark.parametrize("free_kib", [0, 30, 300])
def test_a_full_disk_ends_sampling_and_the_same_command_goes_on(free_kib, disk, trained, broken, report):
    shutil.copytree(broken.run_dir, disk / "run")
    broken.run_dir = disk / "run"
    ballast = fill(disk, free_kib * 1024)
    assert broken.finish("sample") == 1
    assert "Traceback" not in broken.said()
    assert re.search(r"[Nn]o space", broken.said().rpartition("error: ")[2])
    ballast.unlink()
    assert broken.finish("sample") == 0, broken.said()
    same = load_samples(broken.run_dir).sha256 == load_samples(trained.run_dir).sha256
    report.add("sampling", "a full disk", survived=same)
    assert same
