"""Autoguidance: a weaker version of the model guides it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from redi.core.channels import Channels
from redi.guidance import Condition, register
from redi.guidance.contrast import Contrast


@register
class Autoguidance(Contrast):
    """Guidance by a weaker network, p = p_weak + scale (p - p_weak) (Karras et al., arXiv 2406.02507).

    Both networks receive the same x_t, t and label, and need the same channels, classes, codec and process. The weak
    one makes the same errors, but larger ones, so moving away from it reduces them. It has less capacity, less
    training, or both: about 1/16 of the training and a smaller network in EDM2. Its EMA weights are used. Previews and
    the monitor leave the rule out during training, unless `weak` is a module.

    Args:
        scale: guidance scale, or {group: scale}. 1 is the unguided model at no extra cost.
        weak: a run folder, relative to the current folder; in Python also a network, such as `redi.load(folder).model`.
            Default: the run that is sampled, at an earlier `step` or with an `average`.
        step: training step of the checkpoint, which training must keep (`train.keep_every`). Default: the newest.
        average: sigma_rel of an average that `redi.average` wrote in the run folder. `step` is then its step.
        groups: channel groups to guide. Default: those of `scale`, else all: the weak network models every group worse,
            and the published systems with features (SFD, Latent Forcing) guide both streams.
        interval: range of the group's own t (0 noise, 1 data) in which guidance is applied, or {group: range}.

    Raises ValueError for a value of the wrong type.

    Examples:
        >>> rule = Autoguidance(1.5, weak="runs/small", step=400)
        >>> rule.weight_offsets(Channels(image=4, dinov2=8), 0.5)[Condition(network="runs/small step 400")]
        {'image': -0.5, 'dinov2': -0.5}
        >>> rule.networks()
        {'runs/small step 400': {'weak': 'runs/small', 'step': 400, 'average': None}}
    """

    default_groups = None

    def __init__(
        self, scale: float | Mapping[str, float] = 1.5, *, weak: str | Path | nn.Module | None = None,
        step: int | None = None, average: float | None = None, groups: tuple[str, ...] | None = None,
        interval: tuple[float, float] | Mapping[str, tuple[float, float]] = (0.0, 1.0),
    ):  # fmt: skip
        super().__init__(scale, groups, interval)
        is_module = isinstance(weak, nn.Module)
        if not isinstance(weak, str | Path | nn.Module | None):
            allowed = "must be a run folder, or in Python a network such as redi.load(folder).model"
            raise ValueError(f"Autoguidance.weak = {weak!r:.80}: {allowed}")
        if is_module and (step, average) != (None, None):
            raise ValueError("Autoguidance.weak is a network, so step and average have no effect: leave them out")
        if not (step is None or type(step) is int and step >= 0):
            raise ValueError(f"Autoguidance.step = {step!r}: must be a number of training steps, or None")
        if not (average is None or type(average) in (int, float) and average > 0):
            raise ValueError(f"Autoguidance.average = {average!r}: must be a length sigma_rel greater than 0, or None")
        self.weak = weak if is_module else None if weak in (None, "self") else str(weak)
        self.step, self.average = step, average

    @property
    def _name(self) -> str:
        if isinstance(self.weak, nn.Module):
            origin = getattr(self.weak, "origin", None)  # of an opened run
            return f"{origin.folder} step {origin.step}" if origin else type(self.weak).__name__
        average = "" if self.average is None else f" average {self.average:g}"
        return f"{self.weak or 'this run'}{average}" + ("" if self.step is None else f" step {self.step}")

    def networks(self) -> Mapping[str, Any]:
        settings = {"weak": self.weak, "step": self.step, "average": self.average}
        return {self._name: self.weak if isinstance(self.weak, nn.Module) else settings}

    def condition(self, channels: Channels) -> Condition:
        return Condition(network=self._name)

    def provenance(self) -> dict:
        return super().provenance() | ({"weak": self._name} if isinstance(self.weak, nn.Module) else {})
