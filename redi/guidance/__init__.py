"""Guidance: sampling steered by weighing conditions, and the registry of rules.

A *condition* is what one evaluation of the network sees: the label or the null label, all representations or some
zeroed. A rule gives the weight of each condition per channel group. The guided prediction of group g is

    prediction_g = sum_k w_gk(t) model(condition k)_g,     sum_k w_gk(t) = 1.

Rules add offsets to the weights of the unguided prediction. Equal conditions are evaluated once, all in one batch; one
with weight 0 is not evaluated.
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
    """What one evaluation sees. The default sees everything."""

    label: bool = True  # False: the null label
    without: frozenset[str] = frozenset()  # representations zeroed


EVERYTHING = Condition()
Weights = dict[Condition, dict[str, float]]  # {condition: {channel group: weight}}


class Guidance(ABC):
    """A rule: how far the guided prediction departs from the plain one, group by group.

    A component implements `weight_offsets` and `check`, and may override `check_training`. Its attributes are settings,
    as JSON (see `provenance`).
    """

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        keep_old_names(cls, deviations="weight_offsets")  # its name in version 0.1

    @abstractmethod
    def weight_offsets(self, channels: Channels, t: float) -> Weights:
        """Weights that are added to the plain prediction (weight 1 on everything); they sum to 0 in each group."""

    @abstractmethod
    def check(self, channels: Channels, num_classes: int) -> None:
        """Raises ValueError where this rule cannot work with such a model."""

    def check_names(self, argument: str, names: Sequence[str], known: Sequence[str]) -> None:
        """Raises ValueError where an argument names what the model does not have."""
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{type(self).__name__}.{argument} names {unknown}: it can name {', '.join(known)}")

    def check_training(self, label_dropout: float, representation_dropout: float) -> str:
        """What to warn of where a model trained with these dropouts has not learned what this rule asks, or ''."""
        return ""

    def provenance(self) -> dict:
        """Name and settings, for the record of what was sampled."""
        return {"name": type(self).__name__, **vars(self)}


def checked_interval(rule: str, interval: Sequence[float]) -> tuple[float, float]:
    """The argument `interval` of a rule. Raises ValueError unless it is two times, 0 <= first <= last <= 1."""
    try:
        first, last = map(float, interval)
    except (TypeError, ValueError):
        first, last = 1.0, 0.0
    if not 0 <= first <= last <= 1:
        raise ValueError(f"{rule}.interval = {interval!r}: two times are needed, 0 (noise) <= first <= last <= 1")
    return first, last


def contrast(rule, condition: Condition, t: float) -> Weights:
    """The offsets of prediction = condition + scale (everything - condition) on the rule's groups, in its interval."""
    if not rule.interval[0] <= t <= rule.interval[1]:
        return {}
    up, down = (dict.fromkeys(rule.groups, value) for value in (rule.scale - 1, 1 - rule.scale))
    return {EVERYTHING: up, condition: down}


def total_weights(rules: Sequence[Guidance], channels: Channels, t: float) -> Weights:
    """The weights of all rules together; conditions without any weight are left out."""
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
    """The model under guidance, as a function of x_t (N, C, H, W) and t alone.

    A learned variance (further channels of the prediction) is not guided: it is that of the first condition, which
    sees everything unless its weight is 0, as in DiT.

    Args:
        model: (x_t (K N, C, H, W), time (K N,), y (K N,)) -> prediction (K N, C, H, W), one call for K conditions.
        y: (N,) labels.
        model_time: the model's time input at t: `process.model_time` (DiT: 0 ... 999; REPA: 1 - t).
    """

    def denoise(x: Tensor, t: float) -> Tensor:
        weights = total_weights(rules, channels, t)
        everyone = x.new_ones(len(x), dtype=torch.bool)
        inputs = [channels.mask(x, everyone, condition.without) if condition.without else x for condition in weights]
        labels = [y if condition.label else torch.full_like(y, null_label) for condition in weights]
        times = model_time(x.new_full((len(x) * len(weights),), t))
        predictions = model(torch.cat(inputs), times, torch.cat(labels)).chunk(len(weights))
        if list(weights) == [EVERYTHING] and set(weights[EVERYTHING].values()) == {1.0}:
            return predictions[0]
        c = x.shape[1]
        steered = sum(
            prediction[:, :c] * channels.per_channel(weight, like=prediction)
            for prediction, weight in zip(predictions, weights.values(), strict=True)
        )
        return steered if predictions[0].shape[1] == c else torch.cat([steered, predictions[0][:, c:]], dim=1)

    return denoise


guidance_rules = Registry("guidance", Guidance)
register = guidance_rules.register
discover(__name__, guidance_rules)
