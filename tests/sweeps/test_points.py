"""Which points a sweep has, and what they are called."""

import pytest

from redi.sweeps.points import LONGEST_NAME, expand, is_seed, short_keys, short_value, shortened

RANKS = {"PCA.rank": [1, 2], "train.seed": [0, 1, 2]}


def named(grid=None, points=None, names=None) -> list[str]:
    return [point.name for point in expand(grid, points, names)]


def test_a_grid_is_the_product_with_seeds_innermost():
    assert named({"train.seed": [0, 1], "PCA.rank": [8, 4]}) == [
        "rank=8,seed=0", "rank=8,seed=1", "rank=4,seed=0", "rank=4,seed=1",
    ]  # fmt: skip


def test_every_entry_of_points_goes_with_the_whole_grid():
    points = [{"A.x": 1, "B.y": 2}, {"A.x": 3}]
    assert named({"train.seed": [0, 1]}, points) == ["x=1,y=2,seed=0", "x=1,y=2,seed=1", "x=3,seed=0", "x=3,seed=1"]


def test_bindings_are_gin_text():
    (point,) = expand(None, [{"A.name": "text", "A.numbers": (1, 2.5), "A.nothing": None}], None)
    assert point.bindings == {"A.name": "'text'", "A.nothing": "None", "A.numbers": "(1, 2.5)"}


def test_the_order_of_keys_in_the_file_does_not_matter():
    assert named({"B.y": [1], "A.x": [2]}) == named({"A.x": [2], "B.y": [1]}) == ["x=2,y=1"]


def test_points_that_differ_in_seeds_alone_are_one_group():
    points = expand({**RANKS, "sample.seeds": [(0,), (1,)]}, None, None)
    assert {point.group for point in points} == {"rank=1", "rank=2"} and len(points) == 12
    assert {point.group for point in expand({"train.seed": [0, 1]}, None, None)} == {"all"}


@pytest.mark.parametrize(
    ("key", "expected"),
    [("train.seed", True), ("sample.seeds", True), ("SEED", True), ("A.seedling", False), ("reseed", False)],
)
def test_what_counts_as_a_seed(key, expected):
    assert is_seed(key) is expected


def test_names_by_hand_stand_for_the_entries_of_points():
    points = expand({"train.seed": [0, 1]}, [{}, {"PCA.rank": 4}], ["plain", "redi"])
    assert [(p.name, p.group) for p in points] == [
        ("plain,seed=0", "plain"), ("plain,seed=1", "plain"), ("redi,seed=0", "redi"), ("redi,seed=1", "redi"),
    ]  # fmt: skip


def test_a_name_by_hand_is_left_out_where_only_some_of_its_bindings_count():
    (point,) = expand({"train.seed": [3]}, [{"A.x": 1, "B.y": 2}], ["both"])
    assert point.label(["A.x", "B.y", "train.seed"]) == "both,seed=3"
    assert point.label(["A.x", "train.seed"]) == "x=1,seed=3"


def test_a_point_without_bindings_has_a_name():
    assert named(points=[{}]) == ["base"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8", "8"),
        ("0.0001", "0.0001"),
        ("'unit_rms'", "unit_rms"),
        ("@reducers.GaussianRandomProjection()", "GaussianRandomProjection"),
        ("[@guidance.ClassifierFree(), @both/guidance.ClassifierFree()]", "ClassifierFree+both.ClassifierFree"),
        ("('image',)", "image"),
        ("{'dinov2': 1.0, 'clip': 0.5}", "dinov2-1.0+clip-0.5"),
        ("[]", "none"),
        ("'../a b/c'", ".._a_b_c"),
        ("%IMAGES", "IMAGES"),
    ],
)
def test_a_value_in_a_name(text, expected):
    assert short_value(text) == expected


def test_keys_are_as_short_as_they_can_be_told_apart():
    keys = {"PCA.rank", "A.scale", "b/B.scale", "c/B.scale", "IMAGES"}
    short = ["A.scale", "IMAGES", "rank", "b-B.scale", "c-B.scale"]
    assert short_keys(keys) == dict(zip(sorted(keys), short, strict=True))


def test_a_long_name_is_cut_and_stays_unique():
    first, second = shortened("x" * 300 + "1"), shortened("x" * 300 + "2")
    assert len(first) == len(second) == LONGEST_NAME and first != second
    assert shortened("x" * LONGEST_NAME) == "x" * LONGEST_NAME


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "the sweep is empty: bind sweep.grid"),
        ({"grid": {}, "points": []}, "the sweep is empty"),
        ({"grid": {"PCA.rank": []}}, r"sweep.grid\['PCA.rank'\] = \[\]: bind a list of at least one value"),
        ({"grid": {"PCA.rank": 8}}, r"sweep.grid\['PCA.rank'\] = 8: bind a list"),
        ({"grid": {"PCA.scale": "raw"}}, "bind a list of at least one value"),
        ({"grid": [1]}, "sweep.grid = .* bind a dictionary"),
        ({"points": {"PCA.rank": 8}}, "sweep.points = .* bind a list of dictionaries"),
        ({"points": [8]}, "bind a list of dictionaries"),
        ({"grid": {3: [1]}}, "the sweep binds 3: keys must be strings"),
        ({"grid": RANKS, "points": [{"PCA.rank": 1}]}, "PCA.rank is bound by sweep.grid and by sweep.points"),
        ({"grid": {"PCA.rank": [8, 8]}}, "2 points of the sweep are called 'rank=8' and have equal bindings"),
        ({"points": [{"A.x": "a b"}, {"A.x": "a_b"}]}, "'x=a_b' and have different bindings"),
        ({"points": [{"A.x": 1}], "names": ["one", "two"]}, "one name per entry of sweep.points, 1 in all"),
        ({"grid": RANKS, "names": ["one"]}, "one name per entry of sweep.points, 0 in all"),
        ({"points": [{"A.x": 1}], "names": ["../up"]}, "sweep.names contains '../up'"),
        ({"points": [{"A.x": 1}, {"A.x": 2}], "names": ["same", "same"]}, "are called 'same'"),
    ],
)
def test_what_is_no_sweep_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        named(**arguments)
