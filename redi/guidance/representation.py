"""Representation Guidance: the generated representation guides the image."""

from collections.abc import Mapping

from redi.core.channels import Channels
from redi.guidance import Condition, register
from redi.guidance.contrast import Contrast, Interval


@register
class RepresentationGuidance(Contrast):
    """Representation Guidance p = p(x_t) + scale (p(x_t, z_t) - p(x_t)) of the image (paper, Eq. 11-13).

    p(x_t) is the prediction of the same network with the noised representations z_t set to zero. The model must be
    trained with JointObjective.representation_dropout > 0.

    Args:
        scale: w_r, or {group: w_r}. 1 is the unguided model at no extra cost. The paper uses 1.5 for B models and 1.1
            for XL.
        without: representations to set to zero. Default: all.
        groups: channel groups to guide. Default: those of `scale`, else the image, as in Eq. 13, whose gradient is with
            respect to x_t.
        interval: range of the group's own t (0 noise, 1 data) in which guidance is applied, or {group: range}. Outside
            it, guidance has no cost.

    Examples:
        >>> channels = Channels(image=4, dinov2=8)
        >>> offsets = RepresentationGuidance(scale=1.5).weight_offsets(channels, t=0.5)
        >>> offsets[Condition()], offsets[Condition(without=frozenset({"dinov2"}))]
        ({'image': 0.5}, {'image': -0.5})
    """

    def __init__(
        self, scale: float | Mapping[str, float] = 1.5, *, without: tuple[str, ...] | None = None,
        groups: tuple[str, ...] | None = None, interval: Interval | Mapping[str, Interval] = (0.0, 1.0),
    ):  # fmt: skip
        super().__init__(scale, groups, interval)
        without = (without,) if isinstance(without, str) else without
        self.without = None if without is None else tuple(without)

    def check(self, channels: Channels, num_classes: int) -> None:
        if not channels.representations:
            what = "RepresentationGuidance needs a representation, but this model has only the image"
            raise ValueError(f"{what}: remove it from generate.guidance")
        if self.without == ():
            raise ValueError("RepresentationGuidance.without = (): must name representations, or be None for all")
        super().check(channels, num_classes)
        self.check_names("without", self.without or (), channels.representations)

    def check_training(self, label_dropout: float, representation_dropout: float, joint_dropout: float = 0.0) -> str:
        if representation_dropout:
            return ""
        what = "RepresentationGuidance uses predictions without the representation, which were not trained"
        return f"{what}: JointObjective.representation_dropout = 0 (the paper uses 0.2)"

    def condition(self, channels: Channels) -> Condition:
        return Condition(without=frozenset(channels.representations if self.without is None else self.without))
