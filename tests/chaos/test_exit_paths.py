"""Threads, open files and child processes are given back on every way out: the end, an error, a Ctrl-C."""

import gc
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from redi.core.ema import EMA
from redi.core.samplers.euler import Euler
from redi.data.datasets.digits import Digits
from redi.evaluation.samples.sample import sample
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec
from redi.models.transformer import DiffusionTransformer
from redi.runs.load import load
from redi.runtime.interrupt import Stopped
from redi.sampling.generate import generate
from redi.training.trainer import train

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what /proc shows")
MODEL = partial(DiffusionTransformer, width=16, depth=1, num_heads=2, patch_size=4)
DRAW = partial(generate, sampler=Euler(num_evaluations=1))


class Interrupting(Digits):
    """Digits that do something when their n-th batch of 8 is read, by the loader's thread."""

    def __init__(self, number: int, do):
        super().__init__(split="train", held_out_fraction=0.9)
        self.number, self.do, self.count = number, do, 0

    def batch(self, positions, mirror=None):
        if len(positions) == 8:
            self.count += 1
            if self.count == self.number:
                self.do()
        return super().batch(positions, mirror)


def unreadable() -> None:
    raise OSError("the disk is gone")


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def too_late() -> None:
    raise AssertionError("nothing reads this far")


def held() -> tuple[list[str], list[str], int]:
    """Names of this process's threads, what its open files are, and how many children it has."""
    gc.collect()
    files = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # the one that lists them
            continue
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return sorted(thread.name for thread in threading.enumerate()), sorted(files), sum(map(len, children))


def trained(run_dir: Path, dataset=None, **settings) -> None:
    codec = JointCodec(autoencoder=Pixels(channels=1), representations=[])
    given = {"num_steps": 6, "batch_size": 8, "log_every": 1, "preview_every": 3, "preview_images": 2}
    given["check_memory"] = False
    dataset = dataset or Interrupting(1000, too_late)
    train(
        run_dir, codec=codec, dataset=dataset, model=MODEL, ema=partial(EMA, decay=0.9), device="cpu", preview=DRAW,
        **(given | settings),
    )  # fmt: skip


def refused_checkpoint(folder: Path) -> None:
    """A training whose checkpoint cannot be written: a file lies in the place of the folder."""
    folder.mkdir()
    (folder / "checkpoints").write_text("")
    trained(folder)


WAYS_OUT = {
    "the end": (None, trained),
    "unreadable data": (OSError, lambda folder: trained(folder, Interrupting(4, unreadable), num_steps=50)),
    "Ctrl-C": (Stopped, lambda folder: trained(folder, Interrupting(4, ctrl_c), num_steps=50)),
    "no checkpoint": (OSError, refused_checkpoint),
    "a learning rate that explodes": (
        ValueError, lambda folder: trained(folder, num_steps=50, optimizer=partial(torch.optim.SGD, lr=1e30))
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An opened run. Training and drawing once also takes what is kept: threads of torch and of the image decoder."""
    folder = tmp_path_factory.mktemp("exit") / "run"
    trained(folder)
    codec = JointCodec(autoencoder=Pixels(channels=1), representations=[])
    found = load(folder, codec=codec, model=MODEL)
    sample(folder, trained=found, num_images=20, images_per_part=10, generate=DRAW)
    return found


@pytest.mark.parametrize("way", WAYS_OUT)
def test_training_gives_back_what_it_took(way, run, tmp_path):
    error, train_once = WAYS_OUT[way]
    before = held()
    if error is None:
        train_once(tmp_path / "run")
    else:
        with pytest.raises(error):
            train_once(tmp_path / "run")
    assert held() == before


def failing(error: BaseException):
    """A `generate` that raises instead of drawing its second part."""

    def draw(*given, first_index=0, **settings):
        if first_index:
            raise error
        return DRAW(*given, first_index=first_index, **settings)

    return draw


@pytest.mark.parametrize("error", [None, OSError("the disk is gone"), KeyboardInterrupt()], ids=repr)
def test_sampling_gives_back_what_it_took(error, run, tmp_path):
    settings = {"trained": run, "num_images": 20, "images_per_part": 10}
    before = held()
    if error is None:
        sample(tmp_path / "run", **settings, generate=DRAW)
    else:
        with pytest.raises(type(error)):
            sample(tmp_path / "run", **settings, generate=failing(error))
    assert held() == before
