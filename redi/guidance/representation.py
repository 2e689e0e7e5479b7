"""Representation Guidance: the generated representation guides the image."""

from redi.core.channels import Channels
from redi.guidance import Condition, Guidance, Weights, checked_interval, contrast, register


@register
class RepresentationGuidance(Guidance):
    """Representation Guidance p = p(x_t) + scale (p(x_t, z_t) - p(x_t)) of the image (paper, Eq. 11-13).

    p(x_t) is the prediction of the same network with the noised representations z_t set to zero. The model must be
    trained with JointObjective.representation_dropout > 0.

    Args:
        scale: w_r. 1 is the unguided model at no extra cost. The paper uses 1.5 for B models and 1.1 for XL.
        without: representations to set to zero. Default: all.
        groups: channel groups to guide. Default: the image, as in Eq. 13, whose gradient is with respect to x_t.
        interval: range of t (0 noise, 1 data) in which guidance is applied. Outside it, guidance has no cost.

    Examples:
        >>> channels = Channels(image=4, dinov2=8)
        >>> offsets = RepresentationGuidance(scale=1.5).weight_offsets(channels, t=0.5)
        >>> offsets[Condition()], offsets[Condition(without=frozenset({"dinov2"}))]
        ({'image': 0.5}, {'image': -0.5})
    """

    def __init__(
        self, scale: float = 1.5, *, without: tuple[str, ...] | None = None, groups: tuple[str, ...] = ("image",),
        interval: tuple[float, float] = (0.0, 1.0),
    ):  # fmt: skip
        self.scale = scale
        self.interval = checked_interval("RepresentationGuidance", interval)
        without = (without,) if isinstance(without, str) else without
        self.without = None if without is None else tuple(without)
        self.groups = (groups,) if isinstance(groups, str) else tuple(groups)

    def check(self, channels: Channels, num_classes: int) -> None:
        if not channels.representations:
            what = "RepresentationGuidance needs a representation, but this model has only the image"
            raise ValueError(f"{what}: remove it from generate.guidance")
        if self.without == ():
            raise ValueError("RepresentationGuidance.without = (): must name representations, or be None for all")
        self.check_names("groups", self.groups, tuple(channels))
        self.check_names("without", self.without or (), channels.representations)

    def check_training(self, label_dropout: float, representation_dropout: float) -> str:
        if representation_dropout:
            return ""
        what = "RepresentationGuidance uses predictions without the representation, which were not trained"
        return f"{what}: JointObjective.representation_dropout = 0 (the paper uses 0.2)"

    def weight_offsets(self, channels: Channels, t: float) -> Weights:
        without = frozenset(channels.representations if self.without is None else self.without)
        return contrast(self, Condition(without=without), t)
