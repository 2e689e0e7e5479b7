"""Plug-ins that misbehave on purpose, for gin files that import this module."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from redi.core.registry import configurable
from redi.data.datasets import register
from redi.data.datasets.digits import Digits
from redi.models.transformer import DiffusionTransformer
from redi.runtime.randomness import mix_seeds


@configurable(runtime=("channels", "grid", "num_classes", "variance_groups", "alignment_dim"))
class PoisonedTransformer(DiffusionTransformer):
    """A transformer whose first block's MLP gives NaN, or has an infinite gradient, at given steps of training.

    Args:
        nan_steps, inf_steps: the steps, counted from 0; known by the seed that a step begins with, so that repeating a
            step repeats the fault.
        train_seed: `train.seed`.
    """

    def __init__(
        self, *, nan_steps: Sequence[int] = (), inf_steps: Sequence[int] = (), train_seed: int = 0, **settings
    ):
        super().__init__(**settings)
        self.nan_seeds = {mix_seeds(train_seed, step) for step in nan_steps}
        self.inf_seeds = {mix_seeds(train_seed, step) for step in inf_steps}
        self.blocks[0].mlp.register_forward_hook(self._poison)

    def _poison(self, module, inputs, output: Tensor) -> Tensor:
        if self.training and torch.initial_seed() in self.nan_seeds:
            return output * float("nan")
        if self.training and torch.initial_seed() in self.inf_seeds and output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("inf"))
        return output


@register
class StallingDigits(Digits):
    """Digits of which one batch is long in coming.

    Args:
        batch_size: of training, which nothing else reads with.
        stalled_batch: which batch of a process, counted from 0.
        stalled_for: seconds.
    """

    def __init__(self, *, batch_size: int, stalled_batch: int, stalled_for: float, **settings):
        super().__init__(**settings)
        self.batch_size, self.stalled_batch, self.stalled_for = batch_size, stalled_batch, stalled_for
        self.count = 0

    def batch(self, positions, mirror=None) -> dict[str, Tensor]:
        if len(positions) == self.batch_size:
            if self.count == self.stalled_batch:
                time.sleep(self.stalled_for)
            self.count += 1
        return super().batch(positions, mirror)
