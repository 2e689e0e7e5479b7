"""The plots of a sweep's page: a panel for each metric, over the swept number or over settings in words."""

from redi.pages.markup import Html, element, words
from redi.pages.places import Place, placed
from redi.pages.plots import Series, line_plot
from redi.pages.sweep_results import Group, SweepResults, gin_words, short_keys


def sweep_panels(results: SweepResults) -> Html:
    """All panels, with error bars over seeds; nothing where there is one group alone."""
    measured = [metric for metric in results.metrics if any(group.values(metric) for group in results.groups)]
    if not measured or len(results.groups) < 2:
        return Html()
    groups = {g.name: {axis: g.bindings[axis] for axis in results.group_axes if axis in g.bindings}
              for g in results.groups}  # fmt: skip
    what, places = placed(groups)
    panels = []
    for metric in measured:
        better = results.better(metric)
        title = words(metric) + (f" ({better} is better)" if better in ("lower", "higher") else "")
        if what:
            lines = _over_numbers(results, metric, what, places)
            panels.append(line_plot(lines, title=title, x_label=what, log_x=True, marks=True))
        else:
            lines, x_label, ticks = _over_words(results, metric)
            panels.append(line_plot(lines, title=title, x_label=x_label, ticks=ticks, marks=True))
    return element("div", *panels, class_="panels")


def _over_numbers(results: SweepResults, metric: str, what: str, places: dict[str, Place]) -> dict[str, Series]:
    """A curve for every setting of the other keys; a group that has no such number is a level."""
    numbers = [place.x for place in places.values() if place.x is not None]
    has_levels = len(numbers) < len(places)
    unnamed = what.rsplit(".", 1)[-1] if has_levels else words(metric)
    lines: dict[str, list] = {}
    levels = {}
    for group in results.groups:
        place = places[group.name]
        if place.x is not None:
            _add(lines, place.label or unnamed, place.x, group, metric)
        elif (mean := group.mean(metric)) is not None:
            levels[place.label] = Series([min(numbers), max(numbers)], [mean, mean], level=True)
    return _curves(lines) | levels


def _over_words(results: SweepResults, metric: str) -> tuple[dict[str, Series], str, dict[int, str]]:
    """The first key along the axis, a curve for every setting of the others -> also the axis and its ticks."""
    axes = [axis for axis in results.group_axes if len({g.bindings.get(axis) for g in results.groups}) > 1]
    first, names = (axes or [None])[0], short_keys(results.axes)
    places = {g.name: gin_words(g.bindings.get(first)) if first else g.name for g in results.groups}
    texts = list(dict.fromkeys(places.values()))
    lines: dict[str, list] = {}
    for group in results.groups:
        others = [f"{names[axis]} = {gin_words(group.bindings.get(axis))}" for axis in axes[1:]]
        _add(lines, ", ".join(others) or words(metric), texts.index(places[group.name]), group, metric)
    return _curves(lines), first or "point", dict(enumerate(texts))


def _add(lines: dict[str, list], name: str, x: float, group: Group, metric: str) -> None:
    if (mean := group.mean(metric)) is not None:
        lines.setdefault(name, []).append((x, mean, group.spread(metric) or 0.0))


def _curves(lines: dict[str, list]) -> dict[str, Series]:
    ordered = {name: sorted(line, key=lambda point: point[0]) for name, line in lines.items()}
    return {name: Series(*map(list, zip(*line, strict=True))) for name, line in ordered.items()}
