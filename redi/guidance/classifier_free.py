"""Classifier-free guidance on chosen channel groups."""

from redi.core.channels import Channels
from redi.guidance import Condition, Guidance, Weights, checked_interval, contrast, register


@register
class ClassifierFree(Guidance):
    """prediction = null + scale (full - null) on the named groups (Ho & Salimans, arXiv 2207.12598).

    Args:
        scale: 1 is no guidance and costs nothing. The paper's best is 2.4.
        groups: channel groups to guide. The paper guides the image alone (section 4, "VAE-only"): better and
            less sensitive to the scale than guiding the representation too.
        interval: the times t (0 noise, 1 data) between which it guides (Kynkäänniemi et al., arXiv 2404.07724);
            outside, it costs nothing.
    """

    def __init__(
        self, scale: float = 2.4, *, groups: tuple[str, ...] = ("image",), interval: tuple[float, float] = (0.0, 1.0)
    ):
        self.scale = scale
        self.groups = (groups,) if isinstance(groups, str) else tuple(groups)
        self.interval = checked_interval("ClassifierFree", interval)

    def check(self, channels: Channels, num_classes: int) -> None:
        self.check_names("groups", self.groups, tuple(channels))
        if num_classes == 1:
            what = "ClassifierFree guidance needs labels, and this model is unconditional (num_classes = 1)"
            raise ValueError(f"{what}: remove it from generate.guidance, or use guidance.RepresentationGuidance")

    def check_training(self, label_dropout: float, representation_dropout: float) -> str:
        if label_dropout:
            return ""
        return "ClassifierFree guidance asks for the null label, which JointObjective.label_dropout = 0 never trains"

    def weight_offsets(self, channels: Channels, t: float) -> Weights:
        return contrast(self, Condition(label=False), t)
