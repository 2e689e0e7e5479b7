"""Classifier-free guidance on chosen channel groups."""

from collections.abc import Mapping
from typing import Literal

from redi.core.channels import Channels
from redi.guidance import Condition, register
from redi.guidance.contrast import Contrast, Interval
from redi.runtime.ranges import check_choice


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
        null: what the null prediction does without. 'label+representations' also sets the representations to zero, as
            in V-Co (arXiv 2603.16792: scale 1.8 for both groups); train with `JointObjective.joint_dropout`. The
            prediction of a representation that does not see itself has no loss in training, there and here, so a
            warning advises guiding it with a second rule: ClassifierFree(groups=(...)) with the null label.
        channels: {group: n}: guide only the first n channels of this group. LightningDiT (arXiv 2501.01423) guides 3 of
            32, a rule that it took over from DiT, so its scales of 6.7 and 10 hold for {'image': 3} only.

    Examples:
        >>> rule = ClassifierFree(scale=2.0, interval=(0.0, 0.8))
        >>> rule.weight_offsets(Channels(image=4, dinov2=8), t=0.5)[Condition(label=False)]
        {'image': -1.0}
        >>> rule.weight_offsets(Channels(image=4, dinov2=8), t=0.9)
        {}
        >>> list(ClassifierFree(null="label+representations").weight_offsets(Channels(image=4, dinov2=8), t=0.5))[1]
        Condition(label=False, without=frozenset({'dinov2'}), network='self', inner=False)
    """

    def __init__(
        self, scale: float | Mapping[str, float] = 2.4, *, groups: tuple[str, ...] | None = None,
        interval: Interval | Mapping[str, Interval] = (0.0, 1.0),
        null: Literal["label", "label+representations"] = "label",
        channels: Mapping[str, int] | None = None,
    ):  # fmt: skip
        super().__init__(scale, groups, interval)
        check_choice("ClassifierFree.null", null, ("label", "label+representations"))
        self.null = null
        numbers = channels.values() if isinstance(channels, Mapping) else [] if channels is None else [None]
        if any(type(n) is not int or n < 1 for n in numbers):
            what = "must be {group: number of channels}, at least 1"
            raise ValueError(f"ClassifierFree.channels = {channels!r}: {what}; leave a group out to guide all of it")
        self.channels = dict(channels or {})
        self.check_names("channels", tuple(self.channels), self.groups or tuple(self.channels))

    def check(self, channels: Channels, num_classes: int) -> None:
        super().check(channels, num_classes)
        self.check_names("channels", tuple(self.channels), channels.maps)
        if wide := [f"{n} channels of {group}" for group, n in self.channels.items() if n > channels[group]]:
            what = f"ClassifierFree.channels guides {', '.join(wide)}"
            raise ValueError(f"{what}: must be at most the channels of the group in {channels}")
        if self.null != "label" and not channels.representations:
            what = f"ClassifierFree.null = {self.null!r} needs a representation, but this model has only the image"
            raise ValueError(f"{what}: set it to 'label'")
        if num_classes == 1:
            what = "ClassifierFree guidance needs labels, but this model is unconditional (num_classes = 1)"
            raise ValueError(f"{what}: remove it from generate.guidance, or use guidance.RepresentationGuidance")

    def check_training(self, label_dropout: float, representation_dropout: float, joint_dropout: float = 0.0) -> str:
        if self.null == "label":
            what = "ClassifierFree guidance uses the null label, which was not trained"
            return "" if label_dropout else f"{what}: JointObjective.label_dropout = 0"
        advice, rule = [], f"ClassifierFree.null = {self.null!r}"
        if not joint_dropout:
            share = 100 * label_dropout * representation_dropout
            trained = f"trained on {share:.2g} % of the samples only" if share else "not trained"
            advice.append(f"{rule}: this null was {trained}, because JointObjective.joint_dropout = 0 (V-Co uses 0.1)")
        if groups := [group for group in self.groups or () if group != "image"]:
            what = f"{rule} guides {', '.join(groups)}: a prediction without its own input has no loss in training"
            advice.append(f"{what}; guide it by another rule with null = 'label'")
        return "; ".join(advice)

    def condition(self, channels: Channels) -> Condition:
        return Condition(label=False, without=frozenset(() if self.null == "label" else channels.representations))

    def provenance(self) -> dict:
        settings = super().provenance()
        if self.null == "label":
            del settings["null"]  # records of older samples do not have it, nor channels
        if not self.channels:
            del settings["channels"]
        return settings
