"""Autoguidance: a weaker version of the model guides it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from redi.core.channels import Channels
from redi.guidance import Condition, register
from redi.guidance.contrast import Contrast, Interval


@register
class Autoguidance(Contrast):
    """Guidance by a weaker network, p = p_weak + scale (p - p_weak) (Karras et al., arXiv 2406.02507).

    Both networks receive the same x_t, t and label, and need the same channels, classes, codec and process. The weak
    one makes the same errors, but larger ones, so moving away from it reduces them. It has less capacity, less
    training, or both: about 1/16 of the training and a smaller network in EDM2. Its EMA weights are used. Previews and
    the monitor leave the rule out during training, unless `weak` is a network.

    Args:
        scale: guidance scale, or {group: scale}. 1 is the unguided model at no extra cost.
        weak: a run folder, relative to the current folder, perhaps an average that `redi.average` wrote; in Python also
            a network, such as `redi.load(folder).model`. Default: the run that is sampled, at an earlier `step`.
        step: training step of the checkpoint, which training must keep (`train.keep_every`). Default: the newest.
        groups: channel groups to guide. Default: those of `scale`, else all: the weak network models every group worse,
            and the published systems with features (SFD, Latent Forcing) guide both streams.
        interval: range of the group's own t (0 noise, 1 data) in which guidance is applied, or {group: range}.

    Raises ValueError for a value of the wrong type.

    Examples:
        >>> rule = Autoguidance(1.5, weak="runs/small", step=400)
        >>> rule.weight_offsets(Channels(image=4, dinov2=8), 0.5)[Condition(network="runs/small step 400")]
        {'image': -0.5, 'dinov2': -0.5}
        >>> rule.networks()
        {'runs/small step 400': {'weak': 'runs/small', 'step': 400}}
    """

    default_groups = None

    def __init__(
        self, scale: float | Mapping[str, float] = 1.5, *, weak: str | Path | nn.Module | None = None,
        step: int | None = None, groups: tuple[str, ...] | None = None,
        interval: Interval | Mapping[str, Interval] = (0.0, 1.0),
    ):  # fmt: skip
        super().__init__(scale, groups, interval)
        if not isinstance(weak, str | Path | nn.Module | None):
            allowed = "must be a run folder, or in Python a network such as redi.load(folder).model"
            raise ValueError(f"Autoguidance.weak = {weak!r:.80}: {allowed}")
        if not (step is None or type(step) is int and step >= 0):
            raise ValueError(f"Autoguidance.step = {step!r}: must be a number of training steps, or None")
        if isinstance(weak, nn.Module) and step is not None:
            raise ValueError(f"Autoguidance.step = {step} has no effect, because weak is a network: leave it out")
        self.weak = str(weak) if isinstance(weak, Path) else None if weak == "self" else weak
        self.step = step

    @property
    def _name(self) -> str:
        if isinstance(self.weak, nn.Module):
            origin = getattr(self.weak, "origin", None)  # of an opened run
            return f"{origin.folder} step {origin.step}" if origin else type(self.weak).__name__
        return (self.weak or "this run") + ("" if self.step is None else f" step {self.step}")

    def networks(self) -> Mapping[str, Any]:
        is_network = isinstance(self.weak, nn.Module)
        return {self._name: self.weak if is_network else {"weak": self.weak, "step": self.step}}

    def condition(self, channels: Channels) -> Condition:
        return Condition(network=self._name)

    def provenance(self) -> dict:
        return super().provenance() | ({"weak": self._name} if isinstance(self.weak, nn.Module) else {})
