"""The order 'shards': shuffle blocks of consecutive rows, then shuffle the rows of a window of blocks."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from redi.runtime.randomness import mix_seeds

ROWS_PER_BLOCK = 128  # 2 MiB of SD latents: disks and network file systems read it at full speed
WINDOW = 16_384  # 128 blocks; 400 MB of SD latents and eight reduced channels
BLOCKS, ROWS = 2, 3  # separate these random streams from each other and from those of `loader`


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Blocks:
    """A data set divided into blocks of consecutive rows; a window of random blocks is read and shuffled at a time."""

    starts: np.ndarray  # (blocks + 1,) the first row of each block, and the total number of rows
    window: int = WINDOW  # the number of rows shuffled together; a window may have up to one block more

    @classmethod
    def cut(cls, shard_starts: np.ndarray, rows_per_block: int = ROWS_PER_BLOCK, window: int = WINDOW) -> "Blocks":
        """Divide shards into blocks; `shard_starts` has the format of `starts`."""
        pieces = [np.arange(first, end, rows_per_block) for first, end in itertools.pairwise(shard_starts)]
        return cls(np.concatenate([*pieces, shard_starts[-1:]]), window)

    def windows(self, seed: int, epoch: int) -> list[np.ndarray]:
        """Return the block numbers of each window of an epoch; every block occurs once, windows have similar sizes."""
        order = _generator(seed, epoch, BLOCKS).permutation(len(self.starts) - 1)
        sizes = np.diff(self.starts)[order]
        offsets, total = np.cumsum(sizes) - sizes, int(self.starts[-1])
        number = offsets * math.ceil(total / self.window) // total
        return np.split(order, np.flatnonzero(np.diff(number)) + 1)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return the rows in the order of an epoch: window by window, shuffled within each window."""
        generator = _generator(seed, epoch, ROWS)
        rows = np.split(np.arange(self.starts[-1]), self.starts[1:-1])  # of each block
        windows = self.windows(seed, epoch)
        return np.concatenate([generator.permutation(np.concatenate([rows[b] for b in w])) for w in windows])

    def windows_from(self, seed: int, position: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (end, blocks) of each window that ends after `position`; both count rows since the start of epoch 0."""
        total = int(self.starts[-1])
        for epoch in itertools.count(position // total):
            end = epoch * total
            for blocks in self.windows(seed, epoch):
                end += int((self.starts[blocks + 1] - self.starts[blocks]).sum())
                if end > position:
                    yield end, blocks


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(mix_seeds(seed, epoch, stream)))
