"""Plots as SVG markup and as PNG files."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from redi.evaluation.convergence import Curve
from redi.pages.curves import convergence_panel, model_panels, run_panels
from redi.pages.plots import Panel, Series, save, svg

EVIL = '$\\frac{x$ </text><script>alert(1)</script> style="fill: red" \x01\ud800 _'


def drawn(panel: Panel) -> ElementTree.Element:
    return ElementTree.fromstring(svg(panel))


def curves(root) -> list[str]:
    return [part.find("path").get("d") for part in root.iter("g") if part.get("class") == "series"]


def texts(root) -> list[str]:
    return [part.text for part in root.iter("text")]


def test_a_plot_has_no_style_of_its_own_and_takes_the_page_s_colours():
    lines = [Series(str(i), [0, 1], [i, i + 1]) for i in range(9)]
    root = drawn(Panel("title", "step", lines))
    assert not any(part.get("style") or part.tag == "style" for part in root.iter())
    assert root.attrib == {"viewBox": "0 0 440 260", "role": "img", "aria-label": "title: line plot"}
    groups = [part.find("path") for part in root.iter("g") if part.get("class") == "series"]
    assert [path.get("stroke") for path in groups] == [f"var(--s{i % 8})" for i in range(9)]
    assert [path.get("stroke-dasharray") for path in groups] == [None] * 8 + ["6,3"]
    assert {part.get("fill") for part in root.iter("text")} == {"var(--soft)"}


def test_the_legend_names_colour_and_dashes_and_curves_of_one_label_share_them():
    lines = [Series("a", [0, 1], [0, 1]), Series("a", [0, 1], [1, 2]), Series("b", [], [1], level=True)]
    assert Panel("", "step", lines).legend == [("a", 0, None), ("b", 1, (6, 3))]


def test_many_curves_are_told_apart_by_colour_and_dash():
    panel = Panel("", "step", [Series(str(i), [0], [i]) for i in range(32)])
    assert len({(colour, dashes) for _, colour, dashes in panel.legend}) == 32


def test_a_value_that_is_not_a_number_leaves_a_gap():
    root = drawn(Panel("", "step", [Series("loss", [0, 1, 2, 3, 4], [1.0, 2.0, float("nan"), 2.0, 1.0])]))
    [path] = curves(root)
    assert path.count("M") == 2 and path.count("L") == 2


@pytest.mark.parametrize("values", [[1, 1e99, 10**400], [-1e308, 0, 1e308], [0, 0, 0], ["1", None, 5e-324]])
def test_values_at_the_edge_of_arithmetic_are_drawn_or_left_out(values):
    panel = Panel("", "step", [Series("", [10**30, 10**400, 3], values, [0.1, 0.1, 0.1])], swept=True)
    assert curves(drawn(panel))


def test_a_curve_without_a_number_is_left_out():
    assert Panel("", "step", [Series("loss", [0, 1], [float("nan"), float("inf")])]).curves == []


@pytest.mark.parametrize(
    ("values", "y_scale", "log"),
    [([1, 31], "auto", True), ([1, 29], "auto", False), ([0, 100], "auto", False), ([1, 100], "zero", False),
     ([2, 3], "log", True)],
)  # fmt: skip
def test_the_vertical_axis_is_logarithmic_where_values_span_much(values, y_scale, log):
    panel = Panel("title", "step", [Series("", [0, 1], values)], y_scale=y_scale)
    svg(panel)
    assert panel.log_y == log


def test_swept_numbers_have_a_tick_each():
    root = drawn(Panel("", "rank", [Series("", [1, 4, 256], [1, 2, 3])], swept=True, marks=True))
    assert texts(root)[:4] == ["1", "4", "256", "rank"]


def test_places_have_names_and_long_ones_are_cut():
    root = drawn(Panel("", "fusion", [Series("", [0, 1], [1, 2])], names=["Merged", "x" * 99]))
    assert texts(root)[:2] == ["Merged", "x" * 24 + "…"]


def test_hostile_texts_stay_text(tmp_path):
    panel = Panel(EVIL, EVIL, [Series(EVIL, [0, 1], [1, 2]), Series("_b", [0, 1], [1, 2])], names=[EVIL])
    root = drawn(panel)
    shown = EVIL.replace("\x01", " ").replace("\ud800", " ")
    assert shown in texts(root) and "script" not in {part.tag for part in root.iter()}
    save(tmp_path / "plot.png", [panel])
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (750, 585)


def test_a_picture_has_a_panel_for_each_metric_and_three_in_a_row(tmp_path):
    panel = Panel("fid", "rank", [Series("", [1, 2], [1, 2])])
    for count, columns, rows in ((1, 1, 1), (2, 2, 1), (4, 3, 2)):
        save(tmp_path / "plot.png", [panel] * count)
        with Image.open(tmp_path / "plot.png") as picture:
            assert picture.size == (750 * columns, 585 * rows) and len(picture.getcolors(1 << 20)) > 10


def test_nothing_to_plot_leaves_no_picture(tmp_path):
    save(tmp_path / "plot.png", [Panel("", "", [])])
    assert list(tmp_path.iterdir()) == []


# ---- what was logged


def test_losses_share_a_panel_and_what_else_was_logged_has_panels_of_its_own():
    entry = {"loss": 1.0, "gradient_norm": 2.0, "image": 0.5, "images_per_second": 9, "monitor/fd_of_5": 3}
    entries = [{"step": step} | entry for step in (1, 2)]
    panels = run_panels(entries)
    assert [panel.title for panel in panels] == [
        "losses", "fd_of_5, on few samples during training",
        "training speed, images per second", "gradient norm"]  # fmt: skip
    assert [curve.label for curve in panels[0].curves] == ["loss", "image"]


def test_losses_against_t_are_those_of_the_last_line_and_of_an_earlier_one():
    bins = {"loss_by_t/image/0.25": 2.0, "loss_by_t/image/0.75": None, "loss_by_t/odd": 1.0}
    entries = [{"step": step, "loss": 1.0} | bins for step in (10, 20, 30, 40)]
    entries[-1]["loss_by_t/image/0.25"] = 1.5
    losses, panel = run_panels(entries)
    assert [curve.label for curve in losses.curves] == ["loss"]
    assert [(curve.label, curve.y[0]) for curve in panel.curves] == [("image, step 40", 1.5), ("image, step 20", 2.0)]
    assert panel.curves[0].x == [0.25, 0.75] and not np.isfinite(panel.curves[0].y[1])


def test_skipped_steps_are_a_panel_of_their_own_where_there_are_any():
    entries = [{"step": step, "loss": 1.0, "skipped_steps": 0.0} for step in (1, 2)]
    assert [[curve.label for curve in panel.curves] for panel in run_panels(entries)] == [["loss"]]
    entries[1]["skipped_steps"] = 3.0
    assert [panel.curves[0].y for panel in run_panels(entries)] == [[1.0, 1.0], [0.0, 3.0]]


def test_a_log_without_a_curve_has_no_panel():
    assert run_panels([{"step": 1, "loss": 2.0}]) == run_panels([]) == []


def test_models_share_a_panel_of_the_loss_and_of_each_monitored_metric():
    logs = {name: [{"step": 1, "loss": 1.0, "monitor/fd": 2.0, "gradient_norm": 1.0}] for name in ("a", "b")}
    panels = model_panels(logs)
    assert [panel.title for panel in panels] == ["training loss", "fd, on few samples during training"]
    assert all([curve.label for curve in panel.curves] == ["a", "b"] for panel in panels)


def test_the_plot_of_convergence_shows_every_run_and_the_target():
    runs = [Curve(str(i), np.array([1, 2]), np.array([8.0, 4.0 / i])) for i in (1, 2, 3)]
    result = {"factor": 2.0, "low": 1.5, "high": 2.5, "not_reached": 0}
    panel = convergence_panel(baseline=runs[:1], method=runs[1:], metric="monitor/fd_of_5", result=result)
    assert [curve.label for curve in panel.curves] == ["baseline", "method (2 seeds)", "method (2 seeds)",
                                                       "final distance of the baseline"]  # fmt: skip
    assert panel.curves[-1].y == [pytest.approx(4.0)] and panel.log_y
    assert panel.title == "fd_of_5: convergence factor 2.00 (1.50 to 2.50)"
    never = convergence_panel(baseline=runs[:1], method=runs[1:], metric="fd", result=result | {"not_reached": 1})
    assert never.title == "fd: convergence factor at most 2.00"
