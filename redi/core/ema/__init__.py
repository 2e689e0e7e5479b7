"""Averages of the weights over training."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from redi.core.registry import Registry, discover


class AveragedWeights(ABC):
    """A running average of the parameters of a model, which starts as a copy of them. Bound as `train.ema = @ema.EMA`.

    The constructor of a component has the argument `model` and sets `parameters` (see `copied`). A component implements
    `update` and `load`; with more than one average, also `extra_state` and `snapshot`. Parameters may be sharded
    (DTensor).

    Examples:
        The equal-weight average of all steps so far.

        >>> class Mean(AveragedWeights):
        ...     def __init__(self, model):
        ...         self.parameters = copied(model)
        ...     def update(self, model, step):
        ...         lerp(self.parameters, model, 1 / (step + 1))
        ...     def load(self, parameters, extra=None):
        ...         self.parameters = dict(parameters)
        >>> model = nn.Linear(1, 1, bias=False)
        >>> mean = Mean(model)
        >>> for step, value in enumerate((1.0, 2.0, 6.0)):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     mean.update(model, step)
        >>> mean.parameters["weight"].item()
        3.0
    """

    parameters: Mapping[str, Tensor]  # by name; used for previews and sampling, and stored in a checkpoint as "ema"

    @abstractmethod
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights of the model. `step` counts from 0."""

    @abstractmethod
    def load(self, parameters: Mapping[str, Tensor], extra: Mapping[str, Tensor] | None = None) -> None:
        """Load `parameters` and the result of `extra_state`. Raises ValueError if their settings differ."""

    def extra_state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint stores besides `parameters`, in its group "averages"."""
        return {}

    def snapshot(self, step: int) -> dict[str, dict[str, Tensor]] | None:
        """Return the averages to store permanently after `step` steps, as {group: tensors}; None: no snapshot."""
        return None


def copied(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def lerp(average: Mapping[str, Tensor], model: nn.Module, weight: float) -> None:
    """Update in place: average <- (1 - weight) average + weight model."""
    current = dict(model.named_parameters())
    torch._foreach_lerp_(list(average.values()), [current[name] for name in average], weight)


emas = Registry("ema", AveragedWeights, runtime=("model",), harmless=("snapshot_every", "snapshot_dtype"))
register = emas.register
discover(__name__, emas)
