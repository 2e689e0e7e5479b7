"""Averages of the weights over training, and the registry of the ways to average."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from redi.core.registry import Registry, discover


class AveragedWeights(ABC):
    """A running average of a model's parameters, which begins as a copy of them: `train.ema = @ema.EMA`.

    A component takes the argument `model`, sets `parameters` (see `copied`) and implements `update` and `load`. With
    more than one average it also overrides `extra_state` and `snapshot`. Parameters may be sharded (DTensor).
    """

    parameters: Mapping[str, Tensor]  # by name: for previews, sampling and a checkpoint's group "ema"

    @abstractmethod
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the model's weights; `step` counts from 0."""

    @abstractmethod
    def load(self, parameters: Mapping[str, Tensor], extra: Mapping[str, Tensor] | None = None) -> None:
        """Load `parameters` and the result of `extra_state`; raises ValueError where those are of other settings."""

    def extra_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides `parameters`; its group "averages"."""
        return {}

    def snapshot(self, step: int) -> dict[str, dict[str, Tensor]] | None:
        """What is to be kept for good of the averages after `step` steps, in groups; None where nothing is due."""
        return None


def copied(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def lerp(average: Mapping[str, Tensor], model: nn.Module, weight: float) -> None:
    """average <- (1 - weight) average + weight model, in place."""
    current = dict(model.named_parameters())
    torch._foreach_lerp_(list(average.values()), [current[name] for name in average], weight)


emas = Registry("ema", AveragedWeights, runtime=("model",), harmless=("snapshot_every", "snapshot_dtype"))
register = emas.register
discover(__name__, emas)
