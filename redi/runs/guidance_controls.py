"""The guidance rules that a trained run supports, and new scales and intervals for them."""

from collections.abc import Mapping, Sequence
from typing import Any

from redi.core.channels import Channels
from redi.guidance import Guidance, guidance_rules, training_advice
from redi.guidance.autoguidance import Autoguidance
from redi.guidance.contrast import Contrast
from redi.runtime.checkpoint import list_checkpoints, step_of
from redi.sampling.generate import check_generation

# {group: its scale and interval}; {"all": ...} if all guided groups have the same.
Values = Mapping[str, Mapping[str, Any]]
Rules = dict[str, Guidance]


def supported_rules(trained, bound: Sequence[Guidance] = ()) -> tuple[Rules, dict[str, str]]:
    """Return {name: rule} of the rules that the training of a run supports, and {name: reason} of the others.

    Args:
        trained: an opened run (`redi.load`).
        bound: rules of the run's configuration, which come first. The others have scale 1, which has no effect.
    """
    rules: Rules = {}
    for given in bound:
        same = sum(type(other) is type(given) for other in rules.values())
        rules[type(given).__name__ + (f" {same + 1}" if same else "")] = given
    reasons = {}
    for name, component in guidance_rules.items():
        if name in rules or not issubclass(component, Contrast):
            continue
        rule: Any
        if component is not Autoguidance:
            rule = component(1.0)  # type: ignore[call-arg]  # the rules have defaults for the other arguments
        elif (step := _first_step(trained)) is None:
            reasons[name] = "no earlier checkpoint in the run folder: train with train.keep_every"
            continue
        else:
            rule = Autoguidance(1.0, step=step)
        if reason := _unsupported(trained, rule):
            reasons[name] = reason
        else:
            rules[name] = rule
    return rules, reasons


def _first_step(trained) -> int | None:
    """Return the step of the first stored checkpoint, None if it is the opened one."""
    steps = [step_of(path) for path in list_checkpoints(trained.folder)] if trained.folder else []
    return min((step for step in steps if step < trained.step), default=None)


def _unsupported(trained, rule: Guidance) -> str:
    """Return why a rule does not suit the model or its training, or ''."""
    try:
        check_generation(None, trained.process, [rule], trained.model)
    except ValueError as error:
        return str(error).partition(": ")[0]  # what follows is advice for a configuration
    trained_with = getattr(trained.model, "trained_with", None)
    return "; ".join(training_advice([rule], trained_with)) if trained_with else ""


def values_of(rule: Contrast, channels: Channels) -> dict[str, dict[str, Any]]:
    """Return the scale and interval of every group that a rule guides.

    Examples:
        >>> from redi.guidance import ClassifierFree
        >>> values_of(ClassifierFree(1.5), Channels(image=4, dinov2=8))
        {'all': {'scale': 1.5, 'interval': (0.0, 1.0)}}
    """
    scale, interval = rule.scale, rule.interval
    if not isinstance(scale, Mapping) and not isinstance(interval, Mapping):
        return {"all": {"scale": scale, "interval": interval}}
    scales, intervals = ({} if isinstance(one, Mapping) else {"all": one} for one in (scale, interval))
    scales, intervals = scales or dict(scale), intervals or dict(interval)  # type: ignore[arg-type]
    return {
        group: {
            "scale": scales.get("all", scales.get(group)),
            "interval": intervals.get("all", intervals.get(group, (0.0, 1.0))),
        }
        for group in (channels if rule.groups is None else rule.groups)
    }


def with_values(rule: Contrast, values: Values, channels: Channels) -> Contrast:
    """Return the rule with other scales and intervals, as of `values_of`.

    Raises ValueError for other groups, a scale that is not a number, or a range that is not within [0, 1].
    """
    expected = values_of(rule, channels)
    try:
        settings = {key: {group: values[group][key] for group in expected} for key in ("scale", "interval")}
    except (TypeError, KeyError):
        what = f"{type(rule).__name__} = {values!r:.200}"
        raise ValueError(f"{what}: must have the form {expected}") from None
    if "all" in expected:
        settings = {key: one["all"] for key, one in settings.items()}
    return type(rule)(**vars(rule) | settings)


def is_off(rule: Guidance, channels: Channels) -> bool:
    """Return whether all scales of a rule are 1, so that it has no effect."""
    return isinstance(rule, Contrast) and all(one["scale"] == 1 for one in values_of(rule, channels).values())
