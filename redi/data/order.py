"""The order 'shards': blocks of rows that lie together are shuffled, and the rows of some blocks at a time."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from redi.runtime.randomness import mix_seeds

ROWS_PER_BLOCK = 128  # 2 MiB of SD latents in one piece: disks and network file systems read it at full speed
WINDOW = 16_384  # 128 blocks from all over the data set; 400 MB of SD latents and eight reduced channels
BLOCKS, ROWS = 2, 3  # tell these draws from each other, and from those of `loader`


@dataclass(frozen=True, eq=False)  # compared, and hashed, by identity
class Blocks:
    """A data set cut into blocks of consecutive rows, of which one window at a time is read and mixed."""

    starts: np.ndarray  # (blocks + 1,) the first row of each block, and the number of all rows
    window: int = WINDOW  # how many rows are mixed with one another; a window may have up to a block more

    @classmethod
    def cut(cls, shard_starts: np.ndarray, rows_per_block: int = ROWS_PER_BLOCK, window: int = WINDOW) -> "Blocks":
        """Blocks that end where a shard ends; `shard_starts` as `starts`."""
        pieces = [np.arange(first, end, rows_per_block) for first, end in itertools.pairwise(shard_starts)]
        return cls(np.concatenate([*pieces, shard_starts[-1:]]), window)

    def windows(self, seed: int, epoch: int) -> list[np.ndarray]:
        """The numbers of the blocks in each window of an epoch, in order; every block once, windows of like sizes."""
        order = _generator(seed, epoch, BLOCKS).permutation(len(self.starts) - 1)
        sizes = np.diff(self.starts)[order]
        before, total = np.cumsum(sizes) - sizes, int(self.starts[-1])
        number = before * math.ceil(total / self.window) // total
        return np.split(order, np.flatnonzero(np.diff(number)) + 1)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The rows in the order of an epoch: a permutation of all, within each window a random one."""
        generator = _generator(seed, epoch, ROWS)
        rows = np.split(np.arange(self.starts[-1]), self.starts[1:-1])  # of each block
        windows = self.windows(seed, epoch)
        return np.concatenate([generator.permutation(np.concatenate([rows[b] for b in w])) for w in windows])

    def windows_from(self, seed: int, place: int) -> Iterator[tuple[int, np.ndarray]]:
        """Endless: where each window ends in the row of all epochs, and its blocks; the first one holds `place`."""
        total = int(self.starts[-1])
        for epoch in itertools.count(place // total):
            end = epoch * total
            for blocks in self.windows(seed, epoch):
                end += int((self.starts[blocks + 1] - self.starts[blocks]).sum())
                if end > place:
                    yield end, blocks


def _generator(seed: int, epoch: int, what: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(mix_seeds(seed, epoch, what)))
