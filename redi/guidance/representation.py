"""Representation Guidance: the generated features steer the image."""

from redi.core.channels import Channels
from redi.guidance import Condition, Guidance, Weights, checked_interval, contrast, register


@register
class RepresentationGuidance(Guidance):
    """prediction = without z + scale (full - without z) on the image group (paper, Eq. 11-13).

    "Without z" is the same network with the noised representations set to zero, so it must have been trained with
    JointObjective.representation_dropout > 0.

    Args:
        scale: w_r; 1 is no guidance and costs nothing. The paper takes 1.5 for B models and 1.1 for XL.
        without: the representations to leave out; default: all.
        groups: channel groups to guide; the gradient of Eq. 13 is with respect to the image.
        interval: the times t (0 noise, 1 data) between which it guides; outside, it costs nothing.
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
            raise ValueError("RepresentationGuidance needs a representation, and this model has only the image")
        if self.without == ():
            what = "RepresentationGuidance.without = () leaves nothing out"
            raise ValueError(f"{what}: name representations, or None for all")
        self.check_names("groups", self.groups, tuple(channels))
        self.check_names("without", self.without or (), channels.representations)

    def check_training(self, label_dropout: float, representation_dropout: float) -> str:
        if representation_dropout:
            return ""
        what = "RepresentationGuidance asks for predictions without the representation"
        return f"{what}, which JointObjective.representation_dropout = 0 never trains: the paper takes 0.2"

    def weight_offsets(self, channels: Channels, t: float) -> Weights:
        without = frozenset(channels.representations if self.without is None else self.without)
        return contrast(self, Condition(without=without), t)
