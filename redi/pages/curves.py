"""Panels of what was logged during training, of one run or of several side by side."""

from collections.abc import Mapping

from redi.pages.markup import Html, element, is_number, words
from redi.pages.plots import Series, line_plot

MONITOR = "monitor/"
RATES = {"images_per_second": "training speed, images per second", "gradient_norm": "gradient norm",
         "learning_rate": "learning rate"}  # fmt: skip


def run_panels(entries: list[dict]) -> Html:
    """Losses together, then monitored metrics, speed and rates each by itself; nothing for a log without a curve."""
    if not any(len(_series(entries, name).x) > 1 for name in _names(entries)):
        return Html()
    losses = [name for name in _names(entries) if name not in RATES and not name.startswith(MONITOR)]
    panels = [_panel({name: _series(entries, name) for name in losses}, "losses, mean squared error", from_zero=True)]
    for name in sorted(_names(entries), key=lambda name: name in RATES):  # stable: what is monitored comes first
        if name not in losses:
            zero = name == "images_per_second"
            panels.append(
                _panel({name: _series(entries, name)}, _title(name), from_zero=zero, marks=not RATES.get(name))
            )
    return element("div", *panels, class_="panels")


def model_panels(logs: Mapping[str, list[dict]]) -> Html:
    """The loss and every monitored metric, each with all models in one panel."""
    names = list(dict.fromkeys(name for entries in logs.values() for name in _names(entries)))
    shown = [name for name in names if name == "loss" or name.startswith(MONITOR)]
    panels = []
    for name in shown:
        lines = {model: _series(entries, name) for model, entries in logs.items()}
        panels.append(_panel(lines, "training loss" if name == "loss" else _title(name)))
    return element("div", *panels, class_="panels") if any(panels) else Html()


def _title(name: str) -> str:
    if name.startswith(MONITOR):
        return f"{words(name.removeprefix(MONITOR))}, of few samples during training"
    return RATES.get(name, name)


def _panel(series: Mapping[str, Series], title: str, **options) -> Html:
    return line_plot(series, title=title, x_label="step", **options)


def _names(entries: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry if name != "step"))


def _series(entries: list[dict], name: str) -> Series:
    """Where it was logged; a value that is no finite number leaves a gap."""
    points = [(entry["step"], entry[name]) for entry in entries if name in entry]
    return Series([step for step, _ in points], [value if is_number(value) else float("nan") for _, value in points])
