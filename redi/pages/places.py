"""Where the groups of a sweep are drawn: over a swept number, or as levels beside it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from redi.pages.sweep_results import gin_number, gin_words, short_keys


@dataclass(frozen=True)
class Place:
    """At x on the curve of its label, or without x as a level across the panel."""

    x: float | None
    label: str


def placed(groups: Mapping[str, Mapping[str, str]]) -> tuple[str, dict[str, Place]]:
    """-> what the x axis is ('' where no number is swept), and the place of every group.

    The axis is the binding with the most different numbers, if every group with a swept number has that one. Else
    bindings of one name, as the scales of several rules, share the axis, with a curve each. The label of a curve says
    what else is particular about it; it is '' where nothing is.

    Args:
        groups: the bindings of each, without seeds.
    """
    axes = list(dict.fromkeys(axis for bindings in groups.values() for axis in bindings))
    axes = [axis for axis in axes if len({bindings.get(axis) for bindings in groups.values()}) > 1]
    numbers = {axis: {name: gin_number(bindings.get(axis)) for name, bindings in groups.items()} for axis in axes}
    numbers = {axis: {name: x for name, x in found.items() if x is not None} for axis, found in numbers.items()}
    swept = {axis: found for axis, found in numbers.items() if len(set(found.values())) > 1}
    if not swept:
        return "", {}
    anywhere = {name for found in swept.values() for name in found}
    everywhere = [axis for axis, found in swept.items() if found.keys() == anywhere]
    if everywhere:
        what = max(everywhere, key=lambda axis: len(set(swept[axis].values())))
        sharing = [what]
    else:
        what = Counter(_last(axis) for axis in swept).most_common(1)[0][0]
        sharing = [axis for axis in axes if _last(axis) == what]
    short, places = short_keys(axes), {}
    for name, bindings in groups.items():
        own = [axis for axis in sharing if name in numbers[axis]]
        others = [f"{short[k]} = {gin_words(v)}" for k, v in bindings.items() if k in axes and k not in own]
        x = numbers[own[0]][name] if len(own) == 1 else None
        places[name] = Place(None, name) if x is None else Place(x, ", ".join(others))
    if not everywhere:  # which of them it is
        for name, place in places.items():
            if place.x is not None and not place.label:
                own = next(axis for axis in sharing if name in numbers[axis])
                places[name] = Place(place.x, own)
    return what, places


def _last(axis: str) -> str:
    return axis.rsplit(".", 1)[-1]
