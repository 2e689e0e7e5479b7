"""A time for each channel group, drawn independently in training."""

from redi.core.channels import Channels
from redi.core.clocks import Clock, register


@register
class Independent(Clock):
    """Training draws a separate t for every group. In sampling the groups have the same t.

    The network learns all combinations of times, so a group can also be given clean (`own_time` of `redi.generate`):
    features from an image and images from features. An extension of the paper; compare Bao et al. (UniDiffuser), arXiv
    2303.06555.

    Examples:
        >>> Independent().time("dinov2", 0.25), Independent.independent
        (0.25, True)
    """

    separate, independent = False, True

    def for_channels(self, channels: Channels) -> "Independent":
        if not channels.representations:
            what = "clocks.Independent needs a representation, but the codec has only the image"
            raise ValueError(f"{what}: bind clocks.Shared")
        return self

    def time(self, group: str, s):
        return s

    def slope(self, group: str, s):
        return 1.0
