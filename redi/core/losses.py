"""Parts of the training loss: means over kept samples, the cosine of velocities, weights and sums over t."""

import inspect
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from redi.core.channels import Channels
from redi.core.processes import Process
from redi.core.registry import configurable
from redi.runtime.ranges import check_choice, check_number

NUM_BINS, BY_TIME = 10, "loss_by_t/"  # of `sums_by_time`; the prefix of its names in a log
TimeWeight = Callable[[Process, Tensor], Tensor]


def group_weights(weight: float | Mapping[str, float], channels: Channels) -> dict[str, float]:
    """Return lambda of every representation. Raises ValueError, naming the binding, if it is not valid."""
    weights = dict(weight) if isinstance(weight, Mapping) else dict.fromkeys(channels.representations, weight)
    if set(weights) != set(channels.representations):
        names = f"names {sorted(weights)}: must name {sorted(channels.representations)}"
        raise ValueError(f"JointObjective.representation_weight {names}, the representations of the codec")
    if bad := {name: value for name, value in weights.items() if not 0 <= value < math.inf}:
        raise ValueError(f"JointObjective.representation_weight = {bad}: must be finite and at least 0")
    return weights


class GroupMeans:
    """Means of errors per sample, (N,), over a batch in which the representations of some samples are dropped.

    Args:
        weights: lambda of every representation.
        keep: (N,), 0 for samples whose representations are dropped, else 1.
        num_kept: (), the divisor of means over kept samples. Default: the sum of `keep`.
        per_sample: return (N,) instead of the means.

    Examples:
        >>> means = GroupMeans({"dinov2": 0.5}, torch.tensor([1.0, 0.0]))
        >>> errors = {"image": torch.tensor([1.0, 3.0]), "dinov2": torch.tensor([4.0, 100.0])}
        >>> float(means.of("dinov2", errors["dinov2"])), float(means.total(errors))
        (4.0, 3.0)
    """

    def __init__(
        self, weights: Mapping[str, float], keep: Tensor, num_kept: Tensor | None = None, per_sample: bool = False
    ):
        self.weights, self.keep, self.per_sample = weights, keep, per_sample
        self.num_kept = (keep.sum() if num_kept is None else num_kept).clamp(min=1e-6)  # 0 / 1e-6 if all are dropped

    def of(self, name: str, values: Tensor) -> Tensor:
        """Return the mean over the samples that keep the group, () or (N,)."""
        if name == "image":
            return self._over_all(values)
        return values * self.keep if self.per_sample else (values * self.keep).sum() / self.num_kept

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the image's mean + sum_m lambda_m mean_m over all samples, with 0 where m is dropped, () or (N,)."""
        terms = [self._over_all(values["image"])] if "image" in values else []
        terms += [weight * self._over_all(values[m] * self.keep) for m, weight in self.weights.items() if m in values]
        return sum(terms[1:], terms[0])

    def _over_all(self, values: Tensor) -> Tensor:
        return values if self.per_sample else values.mean()


def cosine_errors(
    process: Process, channels: Channels, over: str, prediction: Tensor, x: Tensor, noise: Tensor, x_t: Tensor,
    t: Tensor, dropped: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """Return {group: (N,)}, 1 - the cosine of the predicted and the true velocity, a mean over positions.

    Velocities are derivatives by a group's own time. One cosine over the state is called "image"; dropped
    representations and vectors, which have no positions, are no part of it. Over "groups", a vector has the cosine over
    its numbers. A norm below 1e-3 counts as 1e-3: at the prediction 0 of a new model, the gradient would have no bound.
    """
    path, own = getattr(process, "process", process), process.own_time(t)  # the path inside Clocked
    pair = [path.velocity(values, x_t, own) for values in (prediction, path.target(x, noise, own))]
    if over == "state":
        parts = [channels.split(channels.mask(velocity, dropped)) for velocity in pair]
        pairs = {"image": [torch.cat([part[name] for name in channels.maps], dim=1) for part in parts]}
    else:
        pairs = {name: [channels.unpadded(velocity)[name] for velocity in pair] for name in channels}
    return {
        name: (1 - functional.cosine_similarity(one, other, dim=1, eps=1e-3)).mean(dim=(1, 2))
        for name, (one, other) in pairs.items()
    }


def sums_by_time(errors: Mapping[str, Tensor], keep: Tensor, own_time: Tensor, channels: Channels) -> dict[str, Tensor]:
    """Return {"loss_by_t/<group>": (2, 10)}: the sum of the errors and their number in ten equal bins of the own t.

    Args:
        errors: {group: (N,)}. Those of representations count only where `keep` (N,) is 1.
        own_time: of each channel, (N, 1, 1, 1) or (N, C, 1, 1).

    Examples:
        >>> errors, t = {"image": torch.tensor([1.0, 2.0, 4.0])}, torch.tensor([0.0, 0.55, 1.0])[:, None, None, None]
        >>> sums_by_time(errors, torch.ones(3), t, Channels(image=4))["loss_by_t/image"][0].tolist()
        [1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 4.0]
    """
    sums, bins = {}, torch.arange(NUM_BINS, device=keep.device)
    own_time = own_time.expand(len(keep), channels.total, 1, 1)
    for name, values in errors.items():
        t, weight = own_time[:, channels.slice(name)][:, 0, 0, 0], torch.ones_like(keep) if name == "image" else keep
        inside = (t * NUM_BINS).long().clamp(0, NUM_BINS - 1)[:, None] == bins  # (N, 10)
        both = torch.stack([values.detach() * weight, weight])  # (2, N)
        sums[f"{BY_TIME}{name}"] = (both[..., None] * inside).sum(dim=1)
    return sums


def check_terms(
    process: Process, variance_weight: float, cosine_weight: float, cosine_over: str, time_weight: TimeWeight | None,
    inner_layer: int | None, inner_weight: float,
) -> None:  # fmt: skip
    """Raise ValueError, naming the binding, if the settings of a term are invalid or do not suit the process."""
    for name, weight in {"variance_weight": variance_weight, "cosine_weight": cosine_weight}.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"JointObjective.{name} = {weight}: must be finite and at least 0")
    if inner_layer is not None:
        check_number("JointObjective.inner_layer", inner_layer, note="None: no inner prediction")
        if not 0 < inner_weight < math.inf:
            raise ValueError(f"JointObjective.inner_weight = {inner_weight}: must be finite and greater than 0")
    check_choice("JointObjective.cosine_over", cosine_over, ("state", "groups"))
    if cosine_weight and process.num_timesteps is not None:
        what = f"JointObjective.cosine_weight = {cosine_weight} with {type(process).__name__}, which has no velocity"
        raise ValueError(f"{what}: set it to 0, or bind a continuous process, for example FlowMatching")
    if time_weight is not None and (inspect.isclass(time_weight) or not callable(time_weight)):
        how = "must be a function of (process, t), bound without parentheses, for example @min_snr"
        raise ValueError(f"JointObjective.time_weight = {time_weight!r}: {how}")


@configurable(runtime=("process", "t"))
def min_snr(process: Process, t: Tensor, gamma: float = 5.0) -> Tensor:
    """Return the weight min(SNR, gamma) of the error of the data, for the error that training uses.

    SNR = alpha^2 / sigma^2. A predicted noise has the weight min(SNR, gamma) / SNR, and a velocity on the linear path
    min(SNR, gamma) (1 - t)^2. Source: Hang et al., arXiv 2303.09556, section 3.4, where gamma is 5. t is (N, 1, 1, 1)
    or (N, C, 1, 1). With a clock, each group has the weight of its own time.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> t = torch.tensor([0.2, 0.5, 0.9])[:, None, None, None]
        >>> min_snr(FlowMatching(prediction="data"), t).flatten()
        tensor([0.0625, 1.0000, 5.0000])
    """
    # Both the data and the error are linear in the prediction: their slopes give the error of the data.
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    of_data = process.clean(one, zero, t) - process.clean(zero, zero, t)
    of_error = process.error(one, zero, zero, t) - process.error(zero, zero, zero, t)
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    return snr.clamp(max=gamma) * (of_data / of_error) ** 2
