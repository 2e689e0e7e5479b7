"""One time for all channel groups."""

from redi.core.clocks import Clock, register


@register
class Shared(Clock):
    """The clock of the paper: all groups have the same t.

    Examples:
        >>> Shared().time("dinov2", 0.25)
        0.25
    """

    separate = False

    def time(self, group: str, s):
        return s

    def slope(self, group: str, s):
        return 1.0
