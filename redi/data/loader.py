"""Batches in a seeded order that any step can be resumed from."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from torch import Tensor

from redi.core.seeds import mix_seeds

MIRROR = 1  # keeps the coins apart from the permutations of the same seed and epoch


def batch_positions(num_images: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The data-set positions of one step's batch.

    The steps walk through an endless row of epochs, each a permutation of its own; a batch may span two.
    A function of its arguments alone, so a resumed run needs no stored state.
    """
    positions = np.empty(batch_size, dtype=np.int64)
    for epoch, here, offsets in _epochs(num_images, batch_size, step):
        positions[here] = _order(num_images, seed, epoch)[offsets]
    return positions


def batch_mirror(num_images: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Which samples of one step's batch are mirrored, each with probability 1/2: (batch_size,) bool.

    A function of its arguments alone, and independent from the order: see `batch_positions`.
    """
    mirror = np.empty(batch_size, dtype=bool)
    for epoch, here, offsets in _epochs(num_images, batch_size, step):
        mirror[here] = _coins(num_images, seed, epoch)[offsets]
    return mirror


def _epochs(num_images: int, batch_size: int, step: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each epoch that a batch reaches into: its number, which samples (bool), and their places in the epoch."""
    stream = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = stream // num_images, stream % num_images
    for epoch in np.unique(epochs).tolist():
        yield epoch, epochs == epoch, offsets[epochs == epoch]


@lru_cache(maxsize=2)  # a permutation of ImageNet takes 20 ms, and the next step mostly wants the same one
def _order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(mix_seeds(seed, epoch))).permutation(num_images)


@lru_cache(maxsize=2)
def _coins(num_images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(mix_seeds(seed, epoch, MIRROR))).random(num_images) < 0.5


def batches(
    source, *, batch_size: int, seed: int, start: int, stop: int, prefetch: int = 4
) -> Iterator[dict[str, Tensor]]:
    """The batches of steps start ... stop - 1, read ahead by one thread.

    Args:
        source: has `__len__` and `batch(positions)`: a `Dataset` or a `Cache`. Where its attribute `mirrored` is true,
            `batch` is given as `mirror` which samples to mirror (see `batch_mirror`).
    """

    def read(step: int) -> dict[str, Tensor]:
        positions = batch_positions(len(source), batch_size, seed, step)
        if getattr(source, "mirrored", False):
            return source.batch(positions, mirror=batch_mirror(len(source), batch_size, seed, step))
        return source.batch(positions)

    with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
        pending = deque(thread.submit(read, step) for step in range(start, min(start + prefetch, stop)))
        for step in range(start, stop):
            if step + prefetch < stop:
                pending.append(thread.submit(read, step + prefetch))
            yield pending.popleft().result()
