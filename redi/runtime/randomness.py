"""Which rows of a step's batch a process has, and random numbers that do not depend on it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows [first, first + count) of a batch of `total`, which several processes share.

    What is random is drawn for the whole batch by every process and then cut, so the numbers of a row do not depend on
    the division.
    """

    first: int
    count: int
    total: int

    @classmethod
    def whole(cls, total: int) -> "Rows":
        return cls(0, total, total)

    def of(self, batch):
        """These rows of a tensor or an array (total, ...)."""
        return batch[self.first : self.first + self.count]

    def randn(self, shape: tuple[int, ...], **options) -> Tensor:
        """As torch.randn for these rows, (count, ...), from the draws of the whole batch."""
        return self.of(torch.randn((self.total, *shape[1:]), **options))


def mix_seeds(*seeds: int) -> int:
    """One 63-bit seed from several integers, so that (0, 1) and (1, 0) have nothing in common. Seeds of users lie in
    0 ... 2**64 - 1: beyond they would begin again.
    """
    mixed = 0
    for seed in seeds:
        # splitmix64 (Steele, Lea & Flood 2014): a bijection whose output bits each depend on all input bits.
        mixed = (mixed + seed + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed >> 1
