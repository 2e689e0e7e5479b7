"""Line plots as inline SVG: they take the page's colours, in light and dark, and need no library."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from redi.pages.markup import Html, element, is_number, join, number

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 40
DASHES = (None, "6 3", "2 3", "8 3 2 3")
MOST_POINTS = 500  # of a curve: more than there are pixels


@dataclass
class Series:
    """A curve: points in the order in which they are joined, and half the length of each one's error bar.

    A level is drawn dashed and without dots.
    """

    x: list[float]
    y: list[float]
    error: list[float] = field(default_factory=list)
    level: bool = False


def line_plot(
    series: Mapping[str, Series],
    *,
    title: str,
    x_label: str,
    ticks: Mapping[float, str] | None = None,
    log_x: bool = False,
    from_zero: bool = False,
    marks: bool = False,
) -> Html:
    """A figure with its legend; nothing where there is no point. What is not finite leaves a gap.

    Args:
        ticks: {x: name} where x are places and not numbers.
        log_x: the horizontal axis is logarithmic where values are positive and span more than a factor of ten.
        from_zero: the vertical axis begins at zero.
        marks: dots, each with its value as a tooltip.
    """
    series = {name: _thinned(line) for name, line in series.items() if any(map(is_number, line.y))}
    if not series:
        return Html()
    places = [x for line in series.values() for x in line.x]
    x_axis = _Axis(places, LEFT, WIDTH - RIGHT, spread=10.0 if log_x else None, ticks=ticks)
    heights = [y + sign * bar for line in series.values() for y, bar in _bars(line) for sign in (-1, 1) if is_number(y)]
    y_axis = _Axis([*heights, *([0.0] if from_zero else [])], HEIGHT - BOTTOM, TOP, spread=None if from_zero else 30.0)
    parts = [*_frame(x_axis, y_axis, x_label)]
    for index, (name, line) in enumerate(series.items()):
        parts += _curve(name, line, index, x_axis, y_axis, marks)
    scales = [f"{place} axis logarithmic" for place, axis in (("horizontal", x_axis), ("vertical", y_axis)) if axis.log]
    picture = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title}: line plot")
    caption = element("figcaption", title, f" ({', '.join(scales)})" if scales else "")
    return element("figure", caption, picture, _legend(series) if len(series) > 1 else "")


class _Axis:
    """Values to places between `start` and `end`; logarithmic where positive values span more than `spread`."""

    def __init__(self, values: Sequence[float], start: float, end: float, spread: float | None, ticks=None):
        values = [float(value) for value in values if is_number(value)]
        low, high = min(values), max(values)
        self.start, self.end = start, end
        self.log = bool(spread and not ticks and low > 0 and high / low > spread)
        if ticks:
            self.ticks, low, high = dict(ticks), low - 0.5, high + 0.5
        elif self.log:
            self.ticks = _powers(low, high)
        else:
            self.ticks = {place: f"{place:g}" if abs(place) < 10_000 else _short(place) for place in _nice(low, high)}
            low, high = min(low, *self.ticks), max(high, *self.ticks)
        self.low, self.high = self._of(low), self._of(high)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        """The place of a value, kept inside; what is at or below zero on a logarithmic axis is at its beginning."""
        share = 0.0 if self.log and value <= 0 else (self._of(value) - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + min(1.0, max(0.0, share)) * (self.end - self.start), 1)


def _nice(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from the last at or below `low` to the first at or above `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1.0) * 0.1, high + (abs(high) or 1.0) * 0.1
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _powers(low: float, high: float) -> dict[float, str]:
    """1, 2, 5, 10, ... within the range, or powers of ten alone where it is wide."""
    factors = (1, 2, 5) if math.log10(high / low) < 3.5 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places = [factor * 10.0**power for power in powers for factor in factors]
    return {place: _short(place) for place in places if low * 0.999 <= place <= high * 1.001}


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str) -> list[Html]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value, name in y_axis.ticks.items():
        y = y_axis(value)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="axis"))
        parts.append(element("text", name, x=LEFT - 6, y=y + 4, text_anchor="end"))
    every = -(-len(x_axis.ticks) // 8)
    for value, name in list(x_axis.ticks.items())[::every]:
        x = x_axis(value)
        parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        shown = name if len(name) <= 14 else name[:13] + "…"
        parts.append(element("text", shown, x=x, y=bottom + 17, text_anchor="end" if x > WIDTH - 30 else "middle"))
    return [*parts, element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle")]


def _curve(name: str, line: Series, index: int, x_axis: _Axis, y_axis: _Axis, marks: bool) -> list[Html]:
    colour, dash = index % 8, _dash(index, line)
    parts, path, pen_up = [], "", True
    for (y, bar), x in zip(_bars(line), line.x, strict=True):
        if not (is_number(x) and is_number(y)):
            pen_up = True
            continue
        left, height = x_axis(x), y_axis(y)
        path += f"{'M' if pen_up else 'L'}{left} {height}"
        pen_up = False
        if bar:
            ends = {"y1": y_axis(y - bar), "y2": y_axis(y + bar)}
            parts.append(element("line", x1=left, x2=left, **ends, class_=f"series c{colour}"))
        if marks and not line.level:
            spread = f" ± {number(bar)}" if bar else ""
            label = element("title", f"{name}: {number(y)}{spread} at {x_axis.ticks.get(x, number(x))}")
            parts.append(element("circle", label, cx=left, cy=height, r=4, class_=f"f{colour}"))
    label = element("title", f"{name}: {number(line.y[0])}") if line.level else ""
    return [element("path", label, d=path, stroke_dasharray=dash, class_=f"series c{colour}"), *parts]


def _dash(index: int, line: Series) -> str | None:
    return "6 3" if line.level else DASHES[index // 8 % len(DASHES)]


def _legend(series: Mapping[str, Series]) -> Html:
    entries = []
    for index, (name, curve) in enumerate(series.items()):
        line = element("line", x1=0, x2=26, y1=5, y2=5, stroke_dasharray=_dash(index, curve),
                       class_=f"series c{index % 8}")  # fmt: skip
        entries.append(element("li", element("svg", line, class_="key", aria_hidden="true"), name))
    return element("ul", join(entries), class_="legend")


def _bars(line: Series) -> list[tuple[float, float]]:
    errors = [error if is_number(error) else 0.0 for error in line.error] or [0.0] * len(line.y)
    return list(zip(line.y, errors, strict=True))


def _thinned(line: Series) -> Series:
    """Every k-th point and the last."""
    every = -(-len(line.x) // MOST_POINTS)
    if every < 2:
        return line
    kept = sorted({*range(0, len(line.x), every), len(line.x) - 1})
    return Series(*([values[i] for i in kept] if values else [] for values in (line.x, line.y, line.error)), line.level)
