"""The exponential moving average."""

from collections.abc import Mapping

from torch import Tensor, nn

from redi.core.ema import AveragedWeights, copied, lerp, register


@register
class EMA(AveragedWeights):
    """A running average that forgets at a constant rate: the weight of a step falls by `decay` with each that follows.

    Args:
        decay: of the average per step; the paper takes 0.9999.
        warmup: use min(decay, (1 + step) / (10 + step)) so that early averages forget the initial weights.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.9999, warmup: bool = False):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA.decay = {decay} lies outside [0, 1)")
        self.decay, self.warmup = decay, warmup
        self.parameters = copied(model)

    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        lerp(self.parameters, model, 1 - decay)

    def load(self, parameters: Mapping[str, Tensor], extra: Mapping[str, Tensor] | None = None) -> None:
        if extra:
            raise ValueError(
                "the checkpoint holds several averages, and train.ema = EMA has one: set the class that it was "
                "trained with (ema.PowerFunctionEMA), or begin another run with train.initial_weights"
            )
        for name, tensor in self.parameters.items():
            tensor.copy_(parameters[name])
