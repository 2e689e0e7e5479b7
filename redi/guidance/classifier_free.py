"""Classifier-free guidance on chosen channel groups."""

from redi.core.channels import Channels
from redi.guidance import EVERYTHING, Condition, Guidance, Weights, register


@register
class ClassifierFree(Guidance):
    """prediction = null + scale (full - null) on the named groups (Ho & Salimans, arXiv 2207.12598).

    Args:
        scale: 1 is no guidance and costs nothing. The paper's best is 2.4.
        groups: channel groups to guide. The paper guides the image alone (section 4, "VAE-only"): better and
            less sensitive to the scale than guiding the representation too.
    """

    def __init__(self, *, scale: float = 2.4, groups: tuple[str, ...] = ("image",)):
        self.scale = scale
        self.groups = (groups,) if isinstance(groups, str) else tuple(groups)

    def check(self, channels: Channels, num_classes: int) -> None:
        if unknown := [group for group in self.groups if group not in channels]:
            raise ValueError(f"ClassifierFree.groups names {unknown}: the model has {', '.join(channels)}")
        if num_classes == 1:
            raise ValueError(
                "ClassifierFree guidance needs labels, and this model is unconditional (num_classes = 1): "
                "remove it from generate.guidance, or use guidance.RepresentationGuidance"
            )

    def check_training(self, label_dropout: float, representation_dropout: float) -> str:
        if label_dropout:
            return ""
        return "ClassifierFree guidance asks for the null label, which JointObjective.label_dropout = 0 never trains"

    def deviations(self, channels: Channels, t: float) -> Weights:
        return {
            EVERYTHING: {group: self.scale - 1 for group in self.groups},
            Condition(label=False): {group: 1 - self.scale for group in self.groups},
        }
