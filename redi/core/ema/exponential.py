"""The exponential moving average."""

from collections.abc import Mapping

from torch import Tensor, nn

from redi.core.ema import AveragedWeights, copied, lerp, register


@register
class EMA(AveragedWeights):
    """Exponential moving average: ema <- decay ema + (1 - decay) weights, at every step.

    Args:
        decay: decay per step. The paper uses 0.9999.
        warmup: use min(decay, (1 + step) / (10 + step)), so that the initial weights are forgotten sooner.

    Examples:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> ema = EMA(model, decay=0.75)
        >>> _ = nn.init.ones_(model.weight)
        >>> ema.update(model, step=0)
        >>> ema.parameters["weight"].item()
        0.25
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.9999, warmup: bool = False):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA.decay = {decay}: must be in [0, 1)")
        self.decay, self.warmup = decay, warmup
        self.parameters = copied(model)

    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        lerp(self.parameters, model, 1 - decay)

    def load(self, parameters: Mapping[str, Tensor], extra: Mapping[str, Tensor] | None = None) -> None:
        if extra:
            raise ValueError(
                "the checkpoint holds several averages, but train.ema = EMA has one: set train.ema to the class "
                "of the training run (ema.PowerFunctionEMA), or start a new run with train.initial_weights"
            )
        for name, tensor in self.parameters.items():
            tensor.copy_(parameters[name])
