"""Classifier-free guidance on chosen channel groups."""

from collections.abc import Mapping

from redi.core.channels import Channels
from redi.guidance import Condition, register
from redi.guidance.contrast import Contrast


@register
class ClassifierFree(Contrast):
    """Classifier-free guidance p = p_null + scale (p_label - p_null) (Ho & Salimans, arXiv 2207.12598).

    Args:
        scale: guidance scale, or {group: scale}. 1 is the unguided model at no extra cost; the best value of the paper
            is 2.4.
        groups: channel groups to guide. Default: those of `scale`, else the image. The paper guides the image alone
            ("VAE-only", Figure 6): the FID is better than with a guided representation, and depends less on the scale.
        interval: range of the group's own t (0 noise, 1 data) in which guidance is applied (Kynkäänniemi et al., arXiv
            2404.07724), or {group: range}. Outside it, guidance has no cost.

    Examples:
        >>> rule = ClassifierFree(scale=2.0, interval=(0.0, 0.8))
        >>> rule.weight_offsets(Channels(image=4, dinov2=8), t=0.5)[Condition(label=False)]
        {'image': -1.0}
        >>> rule.weight_offsets(Channels(image=4, dinov2=8), t=0.9)
        {}
    """

    def __init__(
        self, scale: float | Mapping[str, float] = 2.4, *, groups: tuple[str, ...] | None = None,
        interval: tuple[float, float] | Mapping[str, tuple[float, float]] = (0.0, 1.0),
    ):  # fmt: skip
        super().__init__(scale, groups, interval)

    def check(self, channels: Channels, num_classes: int) -> None:
        super().check(channels, num_classes)
        if num_classes == 1:
            what = "ClassifierFree guidance needs labels, but this model is unconditional (num_classes = 1)"
            raise ValueError(f"{what}: remove it from generate.guidance, or use guidance.RepresentationGuidance")

    def check_training(self, label_dropout: float, representation_dropout: float) -> str:
        if label_dropout:
            return ""
        return "ClassifierFree guidance uses the null label, which was not trained: JointObjective.label_dropout = 0"

    def condition(self, channels: Channels) -> Condition:
        return Condition(label=False)
