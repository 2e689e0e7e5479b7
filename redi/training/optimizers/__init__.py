"""Optimizers of a training run, and the registry of those that need the model."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from redi.core.registry import Registry, configurable, discover

# ReDi, arXiv 2504.16064, section 4.1: constant learning rate, no weight decay.
ADAMW = partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0, fused=True)

configurable(torch.optim.AdamW, module="torch.optim", harmless=("fused",))
configurable(torch.optim.Adam, module="torch.optim")
configurable(torch.optim.SGD, module="torch.optim")


class ModelOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer that treats parts of the model differently: `train.optimizer = @optimizers.Muon`.

    A component takes the argument `model`, passes its parameter groups to `super().__init__`, and implements `step`.
    Any other optimizer, such as `torch.optim.AdamW`, is called with the model's parameters.
    """

    @abstractmethod
    def step(self, closure=None):
        """Update the parameters from their gradients."""


def make_optimizer(optimizer: Callable[..., torch.optim.Optimizer], model: nn.Module) -> torch.optim.Optimizer:
    """Call `optimizer` with the model if it has the argument `model`, else with the parameters.

    Raises ValueError, naming the optimizer, for settings that it refuses or that are not finite.
    """
    name = getattr(getattr(optimizer, "func", optimizer), "__name__", "train.optimizer")
    # A class that gin wraps has a metaclass, which hides its signature.
    constructor: Callable = optimizer.__init__ if inspect.isclass(optimizer) else optimizer
    takes_model = "model" in inspect.signature(constructor).parameters
    try:
        optim = optimizer(model=model) if takes_model else optimizer(model.parameters())
    except ValueError as error:
        raise ValueError(f"train.optimizer: {name} refuses its settings: {error}") from error
    for group in optim.param_groups:
        for setting, value in group.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}.{setting} = {value} must be a finite number")
    return optim


optimizers = Registry("optimizers", ModelOptimizer, runtime=("model",))
register = optimizers.register
discover(__name__, optimizers)
