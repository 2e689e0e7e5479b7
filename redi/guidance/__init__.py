"""Guidance: the prediction is a weighted sum of predictions under several conditions.

A *condition* is the input of one evaluation: label or null label, and which representations are set to zero. The guided
prediction of channel group g is

    prediction_g = sum_k w_gk(t) model(condition k)_g,     sum_k w_gk(t) = 1.

The unguided model has weight 1 on the full condition. Every rule adds offsets to these weights. All conditions are
evaluated in one batch, equal conditions once, and conditions with weight 0 not at all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.registry import Registry, discover
from redi.core.renamed import keep_old_names


@dataclass(frozen=True)
class Condition:
    """The input of one evaluation. By default the network receives the label and all representations.

    Examples:
        >>> Condition() == EVERYTHING, Condition(label=False).without
        (True, frozenset())
    """

    label: bool = True  # False: the null label
    without: frozenset[str] = frozenset()  # representations set to zero


EVERYTHING = Condition()
Weights = dict[Condition, dict[str, float]]  # {condition: {channel group: weight}}


class Guidance(ABC):
    """A guidance rule: offsets to the weights of the conditions, per channel group.

    A component implements `weight_offsets` and `check`, and may override `check_training`. Attributes are settings and
    must be JSON values.

    Examples:
        >>> class Halfway(Guidance):  # halfway to the unconditional prediction of the image
        ...     def weight_offsets(self, channels, t):
        ...         return {EVERYTHING: {"image": -0.5}, Condition(label=False): {"image": 0.5}}
        ...     def check(self, channels, num_classes): pass
        >>> total_weights([Halfway()], Channels(image=4), t=0.5)[Condition(label=False)]
        {'image': 0.5}
    """

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        keep_old_names(cls, deviations="weight_offsets")  # name in version 0.1

    @abstractmethod
    def weight_offsets(self, channels: Channels, t: float) -> Weights:
        """Return the offsets to the weights of the unguided model. They sum to 0 over conditions in each group."""

    @abstractmethod
    def check(self, channels: Channels, num_classes: int) -> None:
        """Raise ValueError if this rule cannot guide a model with these channel groups and classes."""

    def check_names(self, argument: str, names: Sequence[str], known: Sequence[str]) -> None:
        """Raise ValueError if an argument names a channel group that the model does not have."""
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{type(self).__name__}.{argument} names {unknown}: must be among {', '.join(known)}")

    def check_training(self, label_dropout: float, representation_dropout: float) -> str:
        """Return a warning if a model trained with these dropouts has not seen the conditions of this rule, or ''."""
        return ""

    def provenance(self) -> dict:
        """Return the rule's name and settings, which are stored with the samples."""
        return {"name": type(self).__name__, **vars(self)}


def checked_interval(rule: str, interval: Sequence[float]) -> tuple[float, float]:
    """Return the argument `interval` of a rule. Raises ValueError unless 0 <= first <= last <= 1."""
    try:
        first, last = map(float, interval)
    except (TypeError, ValueError):
        first, last = 1.0, 0.0
    if not 0 <= first <= last <= 1:
        raise ValueError(f"{rule}.interval = {interval!r}: must be two times, 0 (noise) <= first <= last <= 1 (data)")
    return first, last


def contrast(rule, condition: Condition, t: float) -> Weights:
    """Return the offsets of p = p_condition + scale (p_everything - p_condition) for a rule's groups and interval."""
    if not rule.interval[0] <= t <= rule.interval[1]:
        return {}
    up, down = (dict.fromkeys(rule.groups, value) for value in (rule.scale - 1, 1 - rule.scale))
    return {EVERYTHING: up, condition: down}


def total_weights(rules: Sequence[Guidance], channels: Channels, t: float) -> Weights:
    """Return the weights of all rules together, without conditions whose weights are all 0.

    Examples:
        Classifier-free guidance of the image at scale 2.4 leaves the other groups unguided.

        >>> from redi.guidance import ClassifierFree
        >>> weights = total_weights([ClassifierFree(scale=2.4)], Channels(image=4, dinov2=8), t=0.5)
        >>> weights[EVERYTHING], weights[Condition(label=False)]
        ({'image': 2.4, 'dinov2': 1.0}, {'image': -1.4, 'dinov2': 0.0})
    """
    total: Weights = {EVERYTHING: dict.fromkeys(channels, 1.0)}
    for rule in rules:
        for condition, offsets in rule.weight_offsets(channels, t).items():
            weights = total.setdefault(condition, dict.fromkeys(channels, 0.0))
            for group, value in offsets.items():
                weights[group] += value
    return {condition: weights for condition, weights in total.items() if any(weights.values())}


def guided(
    model: Callable[[Tensor, Tensor, Tensor], Tensor], rules: Sequence[Guidance], channels: Channels, y: Tensor,
    null_label: int, model_time: Callable[[Tensor], Tensor],
) -> Callable[[Tensor, float], Tensor]:  # fmt: skip
    """Return the guided model as a function (x_t (N, C, H, W), t) -> prediction, the `denoise` of samplers.

    A learned variance, in channels after the first C, is not guided, as in DiT. It is that of the first condition,
    which is the full one unless its weight is 0.

    Args:
        model: (x_t (K N, C, H, W), time (K N,), y (K N,)) -> prediction (K N, C, H, W), called once for K conditions.
        rules: guidance rules, whose offsets are added. Without rules the model is not guided.
        channels: the channel groups of the joint state.
        y: labels (N,).
        null_label: the label of the unconditional prediction.
        model_time: the time input of the model at t, `process.model_time` (DiT: 0 ... 999; REPA: 1 - t).

    Examples:
        >>> from redi.guidance import ClassifierFree
        >>> def model(x, t, y): return x * y[:, None, None, None]
        >>> y = torch.tensor([1, 2])
        >>> denoise = guided(model, [ClassifierFree(scale=1.0)], Channels(image=4), y, 10, lambda t: t)
        >>> x = torch.randn(2, 4, 8, 8)
        >>> torch.equal(denoise(x, 0.5), model(x, 0.5, y))  # scale 1: the model itself
        True
    """

    def denoise(x: Tensor, t: float) -> Tensor:
        weights = total_weights(rules, channels, t)
        all_samples = x.new_ones(len(x), dtype=torch.bool)
        inputs = [channels.mask(x, all_samples, condition.without) if condition.without else x for condition in weights]
        labels = [y if condition.label else torch.full_like(y, null_label) for condition in weights]
        times = model_time(x.new_full((len(x) * len(weights),), t))
        predictions = model(torch.cat(inputs), times, torch.cat(labels)).chunk(len(weights))
        if list(weights) == [EVERYTHING] and set(weights[EVERYTHING].values()) == {1.0}:
            return predictions[0]
        c = x.shape[1]
        weighted = [
            prediction[:, :c] * channels.per_channel(weight, like=prediction)
            for prediction, weight in zip(predictions, weights.values(), strict=True)
        ]
        result = sum(weighted[1:], weighted[0])
        return result if predictions[0].shape[1] == c else torch.cat([result, predictions[0][:, c:]], dim=1)

    return denoise


guidance_rules = Registry("guidance", Guidance)
register = guidance_rules.register
discover(__name__, guidance_rules)
