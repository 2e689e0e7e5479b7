"""Internal guidance: the prediction of an inner block guides that of the model."""

from collections.abc import Mapping

from redi.core.channels import Channels
from redi.guidance import Condition, register
from redi.guidance.contrast import Contrast, Interval


@register
class InnerGuidance(Contrast):
    """Guidance by an inner block, p = p_inner + scale (p - p_inner), without a further evaluation.

    Source: RAEv2, arXiv 2605.18324. Train with `JointObjective.inner_layer`. It applies inside other rules' conditions.

    Args:
        scale, groups, interval: as of `Autoguidance`; the defaults are RAEv2's.

    Examples:
        With classifier-free guidance, p = q_null + 2 (q - q_null) of q = p_inner + 1.5 (p - p_inner).

        >>> from redi.guidance import ClassifierFree, total_weights
        >>> total = total_weights([InnerGuidance(1.5), ClassifierFree(2.0)], Channels(image=4), 0.5)
        >>> {(condition.label, condition.inner): weights["image"] for condition, weights in total.items()}
        {(True, False): 3.0, (False, False): -1.5, (True, True): -1.0, (False, True): 0.5}
    """

    default_groups = None
    uses_inner = True

    def __init__(
        self, scale: float | Mapping[str, float] = 1.78, *, groups: tuple[str, ...] | None = None,
        interval: Interval | Mapping[str, Interval] = (0.0, 0.9),
    ):  # fmt: skip
        super().__init__(scale, groups, interval)

    def condition(self, channels: Channels) -> Condition:
        return Condition(inner=True)
