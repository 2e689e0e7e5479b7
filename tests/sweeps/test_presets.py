"""Points of a sweep that are gin files."""

import pytest

from redi.core import config
from redi.core.configurables import import_all
from redi.sweeps.presets import read_presets

import_all()


@pytest.fixture
def preset(tmp_path):
    """Writes a gin file -> its path."""

    def preset(name: str, *lines: str) -> str:
        (tmp_path / name).write_text("\n".join(lines))
        return str(tmp_path / name)

    return preset


def test_a_file_stands_for_its_bindings(preset):
    preset("rank.gin", "reducers.PCA.rank = 4")
    rule = ["generate.guidance = [", "    @guidance.ClassifierFree(),  # one", "]"]
    file = preset("guided.gin", "include 'rank.gin'", *rule)
    plain, guided = read_presets([{"PCA.rank": 2}, {"gin_file": file}])
    assert plain == {"PCA.rank": 2}
    texts = {"PCA.rank": "4", "generate.guidance": "[@guidance.ClassifierFree()]"}
    assert {key: repr(value) for key, value in guided.items()} == texts


def test_later_files_win_and_bindings_beside_them_win_over_all(preset):
    first, second = preset("1.gin", "PCA.rank = 4", "EMA.decay = 0.5"), preset("2.gin", "PCA.rank = 8")
    assert read_presets([{"gin_file": [first, second]}]) == [{"PCA.rank": 8, "EMA.decay": 0.5}]
    (entry,) = read_presets([{"gin_file": [first, second], "reducers.PCA.rank": 16}])
    assert entry == {"PCA.rank": 16, "EMA.decay": 0.5}


def test_macros_of_a_file_are_replaced_by_their_values(preset):
    file = preset("rank.gin", "RANK = 4", "PCA.rank = %RANK", "EMA.decay = 0.5", "OTHER = 1")
    assert read_presets([{"gin_file": file}]) == [{"PCA.rank": 4, "EMA.decay": 0.5, "OTHER": 1}]
    assert read_presets([{"gin_file": file, "RANK": 8}]) == [{"PCA.rank": 8, "EMA.decay": 0.5, "OTHER": 1}]


def test_the_configuration_at_hand_stays_as_it_is(preset):
    config.parse([], ["PCA.rank = 2"])
    read_presets([{"gin_file": preset("1.gin", "PCA.rank = 4")}])
    assert config.bindings() == {"PCA.rank": 2}


def test_what_is_not_a_list_is_left_to_the_checks_of_the_sweep():
    assert read_presets(None) is None and read_presets(3) == 3 and read_presets([3]) == [3]
