import os
import threading
from pathlib import Path

import gin
import pytest

from redi.core import config
from redi.core.configurables import import_all

import_all()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write gin files in a folder and run the test in its subfolder `here`."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def write(**texts: str | bytes):
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.gin"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path

    return write


def rank(*names) -> int | None:
    config.parse([str(name) for name in names])
    return config.bound("PCA.rank")


def refusal(name) -> str:
    with pytest.raises(ValueError) as error:
        config.parse([str(name)])
    return str(error.value)


def test_a_file_is_included_from_beside_the_including_one_then_from_here_then_from_the_shipped_ones(files):
    folder = files(
        lab__mine="include 'part.gin'", lab__part="PCA.rank = 1", here__part="PCA.rank = 2", here__base="PCA.rank = 3"
    )
    assert rank("../lab/mine.gin") == 1
    (folder / "lab" / "part.gin").unlink()
    assert rank("../lab/mine.gin") == 2
    (folder / "lab" / "mine.gin").write_text("include 'base.gin'")
    assert rank("../lab/mine.gin") == 3
    (folder / "here" / "base.gin").unlink()
    assert rank("../lab/mine.gin") not in (1, 2, 3, None)


def test_a_tilde_is_the_home_of_the_user_in_named_and_included_files(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files(lab__mine="include '~/lab/part.gin'", lab__part="PCA.rank = 6")))
    assert rank("~/lab/mine.gin") == 6


def test_an_included_file_includes_from_beside_itself(files):
    files(lab__mine="include '../other/part.gin'", other__part="include 'deep.gin'", other__deep="PCA.rank = 5")
    assert rank("../lab/mine.gin") == 5


def test_a_shipped_file_includes_shipped_files_only(files):
    expected = rank("digits.gin")
    files(here__base="PCA.rank = 77", here__evaluator="PCA.rank = 78")
    assert rank("digits.gin") == expected
    files(here__mine="include 'digits.gin'")
    assert rank("mine.gin") == expected


def test_a_file_may_include_the_shipped_one_of_its_name(files):
    folder = files(lab__digits="include 'digits.gin'\nPCA.scale = 'whiten'")
    expected = rank("digits.gin")
    assert rank(folder / "lab" / "digits.gin") == expected and config.bound("PCA.scale") == "whiten"


def test_files_that_include_one_another_are_named(files):
    files(here__one="include 'two.gin'", here__two="include 'one.gin'", here__self="include 'self.gin'")
    assert refusal("one.gin").startswith("a gin file includes itself: one.gin -> two.gin -> one.gin: remove one")
    assert refusal("self.gin").startswith("a gin file includes itself: self.gin -> self.gin: ")


def test_two_includes_of_one_file_are_no_circle(files):
    files(here__one="include 'two.gin'\ninclude 'part.gin'", here__two="include 'part.gin'", here__part="PCA.rank = 6")
    assert rank("one.gin") == 6


def test_a_byte_order_mark_is_skipped_in_named_included_and_saved_files(files):
    folder = files(here__one=b"\xef\xbb\xbfinclude 'two.gin'\n", here__two=b"\xef\xbb\xbfPCA.rank = 7\n")
    assert rank("one.gin") == 7
    config.parse([], [], saved=[folder / "here" / "two.gin"])
    assert config.bound("PCA.rank") == 7


def test_a_file_in_another_encoding_is_refused_by_name(files):
    files(here__wide="PCA.rank = 7\n".encode("utf-16"))
    assert refusal("wide.gin") == (
        "wide.gin is not a gin file: byte 0 is not UTF-8 text (invalid start byte). Save it as UTF-8"
    )


def test_a_pipe_is_read_like_a_file(files):
    os.mkfifo("pipe.gin")
    writer = threading.Thread(target=Path("pipe.gin").write_text, args=["include 'digits.gin'\nPCA.rank = 8\n"])
    writer.start()
    assert rank("pipe.gin") == 8
    writer.join()


def test_parsing_leaves_gin_as_it_was(files):
    def state():
        return list(gin.config._FILE_READERS), list(gin.config._LOCATION_PREFIXES), gin.config.bind_parameter

    before = state()
    rank("digits.gin")
    refusal("missing.gin")
    assert state() == before


def test_what_the_user_wrote_is_told_from_what_was_included(files):
    files(
        here__mine="include 'part.gin'\nPCA.scale = 'raw'\nscope/PCA.rank = 2\nwidth = 3",
        here__part="PCA.rank = 3\nPCA.scale = 'whiten'\ndepth = 3",
    )
    config.parse(["mine.gin", "digits.gin"], ["PCA.standardize = True"])
    unused = config.without_effect([], among=config.of_user)
    assert unused == ["PCA.scale", "PCA.standardize", "scope/PCA.rank", "width"]
    with config.isolated():
        config.parse([], ["PCA.rank = 2"])
        assert config.without_effect([], among=config.of_user) == ["PCA.rank"]
    assert config.without_effect([], among=config.of_user) == unused
