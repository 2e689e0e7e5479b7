"""Guidance: the prediction is a weighted sum of predictions under several conditions.

A *condition* is one evaluation: label or null label, which representations are set to zero, and the network, which is
the model itself or a weaker one; a network may also predict from an inner block, in the same evaluation. The guided
prediction of channel group g is

    prediction_g = sum_k w_gk(t) model(condition k)_g,     sum_k w_gk(t) = 1.

The unguided model has weight 1 on the full condition. Every rule adds offsets to these weights. All conditions of one
network are evaluated in one batch, equal conditions once, and conditions with weight 0 not at all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.predicted_features import CarriedFeatures
from redi.core.registry import Registry, discover
from redi.core.renamed import keep_old_names


@dataclass(frozen=True)
class Condition:
    """The input and network of one evaluation. By default the model receives the label and all representations.

    Examples:
        >>> Condition() == EVERYTHING, Condition(label=False).without
        (True, frozenset())
    """

    label: bool = True  # False: the null label
    without: frozenset[str] = frozenset()  # representations set to zero
    network: str = "self"  # the model, or one of the rule's `networks`
    inner: bool = False  # True: the prediction from the inner block (`JointObjective.inner_layer`)


EVERYTHING = Condition()
Predict = Callable[..., Any]  # (x_t (N, C, H, W), model time (N,), y (N,)) -> prediction; with inner=True: a pair
Weights = dict[Condition, dict[str, float]]  # {condition: {channel group: weight}}


class Guidance(ABC):
    """A guidance rule: offsets to the weights of the conditions, per channel group.

    A component implements `weight_offsets` and `check`, and may override `check_training` and `networks`. Attributes
    are settings and must be JSON values.

    Examples:
        >>> class Halfway(Guidance):  # halfway to the unconditional prediction of the image
        ...     def weight_offsets(self, channels, t):
        ...         return {EVERYTHING: {"image": -0.5}, Condition(label=False): {"image": 0.5}}
        ...     def check(self, channels, num_classes): pass
        >>> total_weights([Halfway()], Channels(image=4), t=0.5)[Condition(label=False)]
        {'image': 0.5}
    """

    channels: Mapping[str, int] = {}  # {group: n}: it guides the first n channels of this group alone
    uses_inner = False  # True: its offsets apply in every condition of the model, times the weight of that condition

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        if (older := vars(cls).get("deviations")) and "weight_offsets" not in vars(cls):
            # The name in version 0.1, whose t was a number.
            def weight_offsets(self, channels: Channels, t: Mapping[str, float]) -> Weights:
                return older(self, channels, own_times(channels, t)["image"])

            cls.weight_offsets = weight_offsets  # type: ignore[method-assign]
        keep_old_names(cls, deviations="weight_offsets")

    @abstractmethod
    def weight_offsets(self, channels: Channels, t: Mapping[str, float]) -> Weights:
        """Return the offsets to the weights of the unguided model, for the times `t` {group: own t}.

        They sum to 0 over conditions in each group.
        """

    @abstractmethod
    def check(self, channels: Channels, num_classes: int) -> None:
        """Raise ValueError if this rule cannot guide a model with these channel groups and classes."""

    def check_names(self, argument: str, names: Sequence[str], known: Sequence[str]) -> None:
        """Raise ValueError if an argument names a channel group that the model does not have."""
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{type(self).__name__}.{argument} names {unknown}: must be among {', '.join(known)}")

    def check_training(self, label_dropout: float, representation_dropout: float, joint_dropout: float = 0.0) -> str:
        """Return a warning if a model trained with these dropouts has not seen the conditions of this rule, or ''."""
        return ""

    def networks(self) -> Mapping[str, Any]:
        """Return the other networks that conditions of this rule name: {name: network, or settings to open it with}."""
        return {}

    def provenance(self) -> dict:
        """Return the rule's name and settings, which are stored with the samples."""
        return {"name": type(self).__name__, **vars(self)}


def training_advice(rules: Sequence[Guidance], trained_with: Sequence[float]) -> list[str]:
    """Return the warnings of all rules for a model trained with these dropouts: label, representation, joint."""
    dropouts = trained_with if any(trained_with[2:]) else trained_with[:2]  # rules of version 0.1 take two
    return [advice for rule in rules if (advice := rule.check_training(*dropouts))]


def own_times(channels: Channels, t: float | Mapping[str, float]) -> Mapping[str, float]:
    """Return the time of each group: t itself if it is a mapping, else the same t for all."""
    return t if isinstance(t, Mapping) else dict.fromkeys(channels, t)


def parts_of(rules: Sequence[Guidance], channels: Channels) -> dict[str, dict[str, range]]:
    """Return {group: {part: its channels}}: each group, cut where the `channels` of a rule end.

    Examples:
        >>> from redi.guidance import ClassifierFree
        >>> parts_of([ClassifierFree(channels={"image": 3})], Channels(image=32, dinov2=8))
        {'image': {'image': range(0, 3), 'image[3:]': range(3, 32)}, 'dinov2': {'dinov2': range(0, 8)}}
    """
    cuts = {group: sorted({0, *(r.channels.get(group, size) for r in rules), size}) for group, size in channels.items()}
    return {
        group: {f"{group}[{first}:]" if first else group: range(first, end) for first, end in pairwise(ends)}
        for group, ends in cuts.items()
    }


def total_weights(rules: Sequence[Guidance], channels: Channels, t: float | Mapping[str, float]) -> Weights:
    """Return the weights of all rules together, without conditions whose weights are all 0.

    t is the time of all groups, or {group: own t}. A group that a rule guides in part has a weight for each of its
    `parts_of`.

    Examples:
        Classifier-free guidance of the image at scale 2.4 leaves the other groups unguided.

        >>> from redi.guidance import ClassifierFree
        >>> weights = total_weights([ClassifierFree(scale=2.4)], Channels(image=4, dinov2=8), t=0.5)
        >>> weights[EVERYTHING], weights[Condition(label=False)]
        ({'image': 2.4, 'dinov2': 1.0}, {'image': -1.4, 'dinov2': 0.0})
    """
    times, parts = own_times(channels, t), parts_of(rules, channels)
    names = [part for group in parts.values() for part in group]
    total: Weights = {EVERYTHING: dict.fromkeys(names, 1.0)}
    for nested in (False, True):
        outer = {one: dict(weights) for one, weights in total.items() if one.network == "self"}
        for rule in (rule for rule in rules if rule.uses_inner is nested):
            offsets = rule.weight_offsets(channels, times)
            for (one, factors), (condition, values) in product(outer.items(), offsets.items()):
                condition = replace(one, inner=condition.inner) if nested else condition
                weights = total.setdefault(condition, dict.fromkeys(names, 0.0))
                for group, value in values.items():
                    for part, place in parts[group].items():
                        if place.stop <= rule.channels.get(group, channels[group]):
                            weights[part] += factors[part] * value
    for weights in total.values():  # rounding errors would cost an evaluation
        weights.update({g: exact for g, w in weights.items() for exact in (0.0, 1.0) if abs(w - exact) < 1e-12})
    return {condition: weights for condition, weights in total.items() if any(weights.values())}


def networks_of(rules: Sequence[Guidance]) -> dict[str, Any]:
    """Return the other networks of all rules. Raises ValueError if two of them have the same name."""
    networks: dict[str, Any] = {}
    for rule in rules:
        for name, network in rule.networks().items():
            if name == "self" or networks.setdefault(name, network) != network:
                what = f"{type(rule).__name__}.networks names {name!r}, the name of another network"
                raise ValueError(f"{what}: rename it; networks opened by redi.load have the names of their folders")
    return networks


def guided(
    models: Predict | Mapping[str, Predict], rules: Sequence[Guidance], channels: Channels, y: Tensor, null_label: int,
    model_time: Callable[[Tensor], Tensor], group_times: Callable[[float], Mapping[str, float]] | None = None,
) -> Callable[[Tensor, float], Tensor]:  # fmt: skip
    """Return the guided model as a function (x_t (N, C, H, W), t) -> prediction, the `denoise` of samplers.

    A learned variance, in channels after the first C, is not guided, as in DiT. It is that of the first condition,
    which is the full one unless its weight is 0.

    Args:
        models: the model, or {name: network} with the model as "self". Each is called once for its K conditions:
            (x_t (K N, C, H, W), time (K N,), y (K N,)) -> prediction (K N, C, H, W); with inner=True, if a condition
            requires it, -> (prediction, inner prediction).
        rules: guidance rules, whose offsets are added. Without rules the model is not guided.
        channels: the channel groups of the joint state.
        y: labels (N,).
        null_label: the label of the unconditional prediction.
        model_time: the time input of the networks at t, `process.model_time` (DiT: 0 ... 999; REPA: 1 - t).
        group_times: t -> {group: own t}, the times that rules receive, called once per prediction. Default: t for all.

    Examples:
        >>> from redi.guidance import ClassifierFree
        >>> def model(x, t, y): return x * y[:, None, None, None]
        >>> y = torch.tensor([1, 2])
        >>> denoise = guided(model, [ClassifierFree(scale=1.0)], Channels(image=4), y, 10, lambda t: t)
        >>> x = torch.randn(2, 4, 8, 8)
        >>> torch.equal(denoise(x, 0.5), model(x, 0.5, y))  # scale 1: the model itself
        True
    """
    networks = models if isinstance(models, Mapping) else {"self": models}
    cut = {part: len(place) for group in parts_of(rules, channels).values() for part, place in group.items()}
    parts, carried = Channels(**cut), CarriedFeatures()

    def denoise(x: Tensor, t: float) -> Tensor:
        weights = total_weights(rules, channels, t if group_times is None else group_times(t))
        everyone = x.new_ones(len(x), dtype=torch.bool)
        predictions: dict[Condition, Tensor] = {}
        for name in dict.fromkeys(condition.network for condition in weights):
            conditions = [condition for condition in weights if condition.network == name]
            batch = list(dict.fromkeys(replace(condition, inner=False) for condition in conditions))
            inputs = [channels.mask(x, everyone, one.without) if one.without else x for one in batch]
            labels = [y if one.label else torch.full_like(y, null_label) for one in batch]
            times = model_time(x.new_full((len(x) * len(batch),), t))
            asks = {"inner": True} if any(condition.inner for condition in conditions) else {}
            asks |= (features := carried.arguments(networks[name], name, batch, x))
            outputs = networks[name](torch.cat(inputs), times, torch.cat(labels), **asks)
            if features:
                *outputs, predicted = outputs
                carried.keep(name, batch, predicted)
            for inner, output in enumerate(outputs if asks else [outputs]):
                pairs = zip(batch, output.chunk(len(batch)), strict=True)
                predictions.update({replace(condition, inner=bool(inner)): part for condition, part in pairs})
        first, c = predictions[next(iter(weights))], x.shape[1]
        if list(weights) == [EVERYTHING] and set(weights[EVERYTHING].values()) == {1.0}:
            result = first[:, :c]
        else:
            weighted = [predictions[one][:, :c] * parts.per_channel(w, like=first) for one, w in weights.items()]
            result = sum(weighted[1:], weighted[0])
        result = channels.trim(result)  # the states of the sampler keep the padding of vectors 0
        return result if first.shape[1] == c else torch.cat([result, first[:, c:]], dim=1)

    denoise.carries_features = any(getattr(one, "feature_shape", None) for one in networks.values())  # type: ignore
    return denoise


guidance_rules = Registry("guidance", Guidance)
register = guidance_rules.register
discover(__name__, guidance_rules)
