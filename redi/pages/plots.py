"""Line plots by matplotlib, as SVG in the colours of the page (light and dark), or as a PNG file."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any
from xml.etree import ElementTree

from redi.pages.wording import is_number

COLOURS = ("#0072b2", "#c44e00", "#00805c", "#a8437f", "#6b4fa0", "#806000", "#4d4d4d", "#b22222")
TEXT, GRID = "#57606a", "#d0d7de"
VARIABLES = {colour: f"var(--s{i})" for i, colour in enumerate(COLOURS)} | {TEXT: "var(--soft)", GRID: "var(--line)"}
DASHES = (None, (6, 3), (2, 3), (8, 3, 2, 3))
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # so that `$` in a name is a dollar sign
    "lines.scale_dashes": False,
    "path.simplify_threshold": 0.5,  # pixels; long logs have more points than the picture has pixels
    "figure.constrained_layout.h_pad": 0.1,  # inches
    "svg.fonttype": "none",
    "svg.hashsalt": "redi",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), TEXT),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), GRID),
}


@dataclass
class Series:
    """A curve. Values that are not finite or exceed 1e100 leave a gap. Curves with the same label share a colour."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None  # half the length of each error bar
    level: bool = False  # a dashed horizontal line at the only y
    thin: bool = False

    def __post_init__(self):
        self.x, self.y = (
            [float(v) if is_number(v) and abs(v) < 1e100 else math.nan for v in values] for values in (self.x, self.y)
        )


@dataclass
class Panel:
    """A plot of the curves with at least one finite value.

    Attributes:
        names: names of x = 0, 1, 2, ..., if x are categories.
        swept: x are a few numbers with a tick each; logarithmic if they span more than a factor of six.
        y_scale: "auto" (logarithmic if values are positive and span more than a factor of thirty), "zero" (linear from
            zero) or "log".
    """

    title: str
    x_label: str
    curves: Sequence[Series]
    names: Sequence[str] = ()
    swept: bool = False
    y_scale: str = "auto"
    marks: bool = False
    legend: list[tuple[str, int, tuple | None]] = field(init=False)  # label, number of the colour, dashes

    def __post_init__(self):
        self.curves = [curve for curve in self.curves if any(map(is_number, curve.y))]
        self.x = sorted({x for curve in self.curves for x in curve.x if is_number(x)})
        self.y = sorted(y for curve in self.curves for y in curve.y if is_number(y))
        self.log_x = self.swept and _span(self.x) > 6
        self.log_y = self.y_scale == "log" or (self.y_scale == "auto" and _span(self.y) > 30)
        levels = {curve.label: curve.level for curve in self.curves}.items()
        self.legend = [(name, i % 8, DASHES[1 if level else i // 8 % 4]) for i, (name, level) in enumerate(levels)]


def svg(panel: Panel) -> str:
    """Return the plot as SVG markup with escaped text, for inclusion in the page."""
    picture = io.BytesIO()
    _write(picture, [panel], (440 / 72, 260 / 72), font=12, format="svg", transparent=True)
    return _inline(picture.getvalue(), _printable(f"{panel.title}: line plot"))


def save(path: Path, panels: Sequence[Panel]) -> None:
    """Write the panels with curves to one PNG file, with titles and the legend of the first panel."""
    if panels := [panel for panel in panels if panel.curves]:
        _write(path, panels, (5.0, 3.9), font=10, captions=True, dpi=150)


def _write(target, panels: Sequence[Panel], size: tuple[float, float], font: int, captions=False, **options) -> None:
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE | {"font.size": font}):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        for index, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, index + 1)
            _draw(axes, panel)
            axes.set_title(fill(_printable(panel.title), 54) if captions else "", fontsize=font)
        if captions and len(panels[0].legend) > 1:  # outside the axes
            handles, labels = figure.axes[0].get_legend_handles_labels()
            legend = dict(zip(labels, handles, strict=True))
            figure.legend(legend.values(), legend, loc="outside lower center", ncols=columns, frameon=False)
        figure.savefig(target, **options)


def _draw(axes, panel: Panel) -> None:
    looks = {name: {"color": COLOURS[i], "linestyle": (0, dash) if dash else "-"} for name, i, dash in panel.legend}
    for curve in panel.curves:
        width = 0.8 if curve.thin else 1.6
        look = looks[curve.label] | {"label": _printable(curve.label), "gid": "series", "linewidth": width}
        if curve.level:
            axes.axhline(curve.y[0], **look)
        else:
            axes.errorbar(curve.x, curve.y, yerr=curve.error, marker="o" if panel.marks else None, **look)
    axes.set_xlabel(_printable(panel.x_label))
    axes.grid(axis="y")
    axes.spines[["top", "right", "left"]].set_visible(False)
    if panel.names:
        names = [_printable(name[:24] + "…" * (len(name) > 24)) for name in panel.names]
        slope = 30 if sum(map(len, names)) > 45 else 0
        axes.set_xticks(range(len(names)), names, rotation=slope, ha="right" if slope else "center")
        axes.margins(x=0.1)
    else:
        _scale(axes, "x", panel.x, panel.log_x)
        if not panel.swept:
            axes.locator_params(axis="x", integer=all(x == int(x) for x in panel.x))
        elif len(panel.x) <= 8:
            axes.set_xticks(panel.x)
    _scale(axes, "y", panel.y, panel.log_y)
    if panel.y_scale == "zero":
        axes.set_ylim(bottom=min([0.0, *panel.y]))
    axes.minorticks_off()


def _scale(axes, name: str, values: Sequence[float], log: bool) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator

    axis, span = getattr(axes, f"{name}axis"), _span(values)
    if log:
        axes.set(**{f"{name}scale": "log"})
        axis.set_major_locator(MaxNLocator(6) if span < 10 else LogLocator(subs=(1, 2, 5) if span < 300 else (1,)))
    axis.set_major_formatter("{x:,.10g}")


def _span(ascending: Sequence[float]) -> float:
    return ascending[-1] / ascending[0] if ascending and ascending[0] > 0 else 0.0


def _printable(text: str) -> str:
    """Replace control characters and lone surrogates, which fonts and XML cannot represent, by spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _inline(picture: bytes, label: str) -> str:
    """Convert an SVG file of matplotlib to markup for the page.

    The page's policy forbids style attributes: presentation attributes replace them, and variables the colours.
    """
    root = ElementTree.fromstring(picture)
    for part in root.iter():
        part.tag, part.tail = part.tag.rpartition("}")[2], None
        attributes = {key.rpartition("}")[2]: " ".join(value.split()) for key, value in part.items()}
        for entry in attributes.pop("style", "").split(";"):
            name, _, value = entry.partition(":")
            if value and not name.strip().startswith("font"):
                attributes[name.strip()] = VARIABLES.get(value.strip(), value.strip())
        if part.tag == "g":
            attributes["class"] = attributes.pop("id", "")
        if part.tag == "svg":
            attributes = {"viewBox": attributes["viewBox"], "role": "img", "aria-label": label}
        part.attrib.clear()
        part.attrib.update(attributes)
    for part in [part for part in root if part.tag in ("metadata", "defs")]:  # each shape has its own `defs`
        root.remove(part)
    return ElementTree.tostring(root, encoding="unicode")
