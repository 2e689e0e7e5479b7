"""The places of a sweep's groups in its plots."""

import json

import pytest

from redi.pages.sweep_plots import place_groups, sweep_panels
from redi.pages.sweep_results import SweepResults


def places(*bindings: dict[str, str]):
    what, places, names = place_groups({str(index): row for index, row in enumerate(bindings)})
    return what, list(places.values()), names


def test_the_swept_number_is_the_axis_and_a_group_without_it_a_level():
    rows = [{"PCA.rank": "4"}, {"PCA.rank": "8"}, {"JointCodec.representations": "[]"}]
    assert places(*rows) == ("PCA.rank", [(4, ""), (8, ""), (None, "2")], [])


def test_of_two_numbers_the_one_with_more_values_is_the_axis():
    rows = [{"A.scale": a, "B.scale": b} for a in ("1.0", "2.0") for b in ("1.0", "1.5", "3.0")]
    what, found, _ = places(*rows)
    assert what == "B.scale" and found[4] == (1.5, "A.scale = 2.0")


def test_scales_of_several_rules_share_an_axis():
    first = [{"generate.guidance": "[@A()]", "A.scale": scale} for scale in ("1.0", "2.0")]
    second = [{"generate.guidance": "[@B()]", "B.scale": scale} for scale in ("1.5", "2.0")]
    both = {"generate.guidance": "[@A(), @B()]", "A.scale": "2.0", "B.scale": "2.0"}
    what, found, _ = places(*first, *second, both)
    assert what == "scale"
    assert found[1] == (2.0, "guidance = [A]") and found[2] == (1.5, "guidance = [B]") and found[4] == (None, "4")
    what, found, _ = places({"A.scale": "1"}, {"A.scale": "2"}, {"B.scale": "1"}, {"B.scale": "2"})
    assert (what, found[1], found[2]) == ("scale", (2, "A.scale"), (1, "B.scale"))


def test_what_all_groups_have_alike_is_not_part_of_a_label():
    assert places({"A.x": "1", "B.y": "'same'"}, {"A.x": "2", "B.y": "'same'"})[1] == [(1, ""), (2, "")]


def test_without_numbers_the_settings_of_the_first_key_are_places_and_those_of_the_others_curves():
    rows = [{"A.fusion": f"@{fusion}", "B.x": x} for fusion in ("Merged", "Separate") for x in ("'a'", "'b'")]
    expected = [(0, "x = a"), (0, "x = b"), (1, "x = a"), (1, "x = b")]
    assert places(*rows) == ("A.fusion", expected, ["Merged", "Separate"])


def test_without_numbers_and_without_a_grid_the_groups_are_the_places_in_their_order():
    rows = [{}, {"B.fusion": "@Merged"}, {"A.scheme": "'x'", "B.fusion": "@Merged"}, {"A.scheme": "'w'"}]
    assert places(*rows) == ("point", [(0, ""), (1, ""), (2, ""), (3, "")], ["0", "1", "2", "3"])


@pytest.fixture
def panels(sweep_dir):
    """Change the points of the sweep; return title and curves {label: [(x, y, error)]} of each panel."""

    def panels(change=lambda point: None, **plan):
        description = json.loads((sweep_dir / "sweep.json").read_text())
        for point in description["points"]:
            change(point)
        (sweep_dir / "sweep.json").write_text(json.dumps(description | plan))
        results = SweepResults(sweep_dir)
        shown = sweep_panels(results, results.metrics)
        return shown, [{c.label: list(zip(c.x, c.y, c.error or c.y, strict=False)) for c in p.curves} for p in shown]

    return panels


def test_every_metric_is_plotted_against_the_number_that_is_swept_with_error_bars_over_seeds(panels):
    (first, second), (fid, recall) = panels()
    assert (first.title, first.x_label, first.log_x) == ("fid_clean (lower is better)", "PCA.rank", True)
    deviation = pytest.approx(0.5**0.5)
    assert fid == {"rank": [(1, 100.5, 0.0), (2, 50.75, deviation), (10, pytest.approx(10.55), deviation)]}
    assert second.title == "recall (higher is better)" and recall["rank"][0] == (1, 0.0625, 0.01)  # its own spread


def test_points_that_are_compared_with_a_baseline_are_places_of_their_own(panels):
    (first, _), (fid, _) = panels(baseline="rank=2")
    assert (first.x_label, first.names) == ("point", ["rank=2", "rank=10", "rank=1"])
    assert [place[:2] for place in fid["point"]] == [(0, 50.75), (1, pytest.approx(10.55)), (2, 100.5)]


def test_a_group_without_the_swept_number_is_a_level_across_the_panel(panels):
    def change(point):
        if point["group"] == "rank=1":
            point |= {"bindings": {"JointCodec.representations": "[]"}, "group": "plain"}

    (panel, _), (fid, _) = panels(change, axes=["JointCodec.representations", "PCA.rank"])
    assert [x for x, *_ in fid["rank"]] == [2, 10]
    level = panel.curves[-1]
    assert (level.label, level.y, level.level, panel.x_label) == ("plain", [100.5], True, "PCA.rank")


def test_a_second_key_gives_curves_of_their_own(panels):
    def change(point):
        point["bindings"]["train.scale"] = point["bindings"].pop("train.seed")
        point["group"] = point["name"]

    _, curves = panels(change, axes=["PCA.rank", "train.scale"])
    assert [list(panel) for panel in curves] == [["scale = 0", "scale = 1"]] * 2


def test_settings_that_are_not_numbers_are_places_of_their_own(panels):
    names = iter("AABBCC")

    def change(point):
        seed = point["bindings"]["train.seed"]
        point["bindings"] = {"JointCodec.fusion": f"@fusion.{next(names)}()", "train.seed": seed}

    (panel, _), (_, recall) = panels(change, axes=["JointCodec.fusion", "train.seed"])
    assert panel.names == ["A", "B", "C"] and [x for x, *_ in recall["fusion"]] == [0, 1, 2]
