"""Which rows of a step's batch a process has, and random numbers that do not depend on it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows [first, first + count) of a batch of `total`, which several processes share.

    What is random is drawn for the whole batch, by every process alike, and then cut: so the numbers of a row are the
    same whatever the division. That costs next to nothing: the noise of 256 images of 12 x 32 x 32 is 12 MiB.
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
