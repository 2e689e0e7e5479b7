"""Where the groups of a sweep are drawn, in its picture and on its page."""

from redi.pages.places import placed


def places(*bindings: dict[str, str]):
    what, found = placed({str(index): own for index, own in enumerate(bindings)})
    return what, [(place.x, place.label) for place in found.values()]


def test_the_swept_number_is_the_axis_and_a_group_without_it_a_level():
    rows = [{"PCA.rank": "4"}, {"PCA.rank": "8"}, {"JointCodec.representations": "[]"}]
    assert places(*rows) == ("PCA.rank", [(4, ""), (8, ""), (None, "2")])


def test_of_two_numbers_the_one_with_more_values_is_the_axis():
    rows = [{"A.scale": a, "B.scale": b} for a in ("1.0", "2.0") for b in ("1.0", "1.5", "3.0")]
    what, found = places(*rows)
    assert what == "B.scale" and found[4] == (1.5, "A.scale = 2.0")


def test_scales_of_several_rules_share_an_axis():
    first = [{"generate.guidance": "[@A()]", "A.scale": scale} for scale in ("1.0", "2.0")]
    second = [{"generate.guidance": "[@B()]", "B.scale": scale} for scale in ("1.5", "2.0")]
    what, found = places(*first, *second, {"generate.guidance": "[@A(), @B()]", "A.scale": "2.0", "B.scale": "2.0"})
    assert what == "scale"
    assert found[1] == (2.0, "guidance = [A]") and found[2] == (1.5, "guidance = [B]") and found[4] == (None, "4")
    what, found = places({"A.scale": "1"}, {"A.scale": "2"}, {"B.scale": "1"}, {"B.scale": "2"})
    assert (what, found[1], found[2]) == ("scale", (2, "A.scale"), (1, "B.scale"))


def test_what_all_groups_have_alike_is_no_part_of_a_label():
    assert places({"A.x": "1", "B.y": "'same'"}, {"A.x": "2", "B.y": "'same'"})[1] == [(1, ""), (2, "")]


def test_without_numbers_there_is_no_axis():
    assert places({"A.fusion": "@Merged"}, {"A.fusion": "@Separate"}) == ("", [])
