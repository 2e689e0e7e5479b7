"""Exponential moving average of the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from redi.core.registry import configurable


@configurable(runtime=("model",))
class EMA:
    """A running average of a model's parameters, by name.

    Args:
        decay: of the average per step; the paper takes 0.9999.
        warmup: use min(decay, (1 + step) / (10 + step)) so that early averages forget the initial weights.
    """

    def __init__(self, *, model: nn.Module, decay: float = 0.9999, warmup: bool = False):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA.decay = {decay} lies outside [0, 1)")
        self.decay = decay
        self.warmup = warmup
        self.parameters = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the model's weights; `step` counts from 0."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        current = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.parameters.values()), [current[name] for name in self.parameters], 1 - decay)

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Takes over a stored average."""
        for name, tensor in self.parameters.items():
            tensor.copy_(parameters[name])

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Writes the average into a model of the same shape."""
        current = dict(model.named_parameters())
        for name, tensor in self.parameters.items():
            current[name].copy_(tensor)
