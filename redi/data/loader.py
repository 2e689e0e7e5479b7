"""Batches in a seeded order that any step can be resumed from."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch import Tensor

from redi.core.seeds import mix_seeds


def batch_positions(num_images: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The data-set positions of one step's batch.

    The steps walk through an endless row of epochs, each a permutation of its own; a batch may span two.
    A function of its arguments alone, so a resumed run needs no stored state.
    """
    stream = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = stream // num_images, stream % num_images
    positions = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.Generator(np.random.PCG64(mix_seeds(seed, int(epoch)))).permutation(num_images)
        positions[epochs == epoch] = order[offsets[epochs == epoch]]
    return positions


def batches(
    source, *, batch_size: int, seed: int, start: int, stop: int, prefetch: int = 4
) -> Iterator[dict[str, Tensor]]:
    """The batches of steps start ... stop - 1, read ahead by one thread.

    Args:
        source: has `__len__` and `batch(positions)`: a `Dataset` or a `Cache`.
    """

    def read(step: int) -> dict[str, Tensor]:
        return source.batch(batch_positions(len(source), batch_size, seed, step))

    with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
        pending = deque(thread.submit(read, step) for step in range(start, min(start + prefetch, stop)))
        for step in range(start, stop):
            if step + prefetch < stop:
                pending.append(thread.submit(read, step + prefetch))
            yield pending.popleft().result()
