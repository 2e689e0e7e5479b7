"""Split a batch over processes, with random numbers that do not depend on the split."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows [first, first + count) of a batch of `total` rows: the part of one process.

    Every process draws the random numbers of the whole batch, so they do not depend on the number of processes.
    """

    first: int
    count: int
    total: int

    @classmethod
    def whole(cls, total: int) -> "Rows":
        """Return all rows, for a single process."""
        return cls(0, total, total)

    def of(self, batch):
        """Return these rows of a tensor or an array (total, ...)."""
        return batch[self.first : self.first + self.count]

    def randn(self, shape: tuple[int, ...], **options) -> Tensor:
        """Return these rows, (count, ...), of a torch.randn tensor drawn for the whole batch."""
        return self.of(torch.randn((self.total, *shape[1:]), **options))


def mix_seeds(*seeds: int) -> int:
    """Hash several integers, taken modulo 2**64, to one 63-bit seed; the order matters."""
    mixed = 0
    for seed in seeds:
        # splitmix64 (Steele, Lea & Flood 2014): a bijection whose output bits each depend on all input bits.
        mixed = (mixed + seed + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed >> 1
