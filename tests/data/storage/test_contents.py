"""Copied, touched and edited folders: equal content is the same data set, other content is another."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from redi.data.datasets.image_folder import ImageFolder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("REDI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path) -> Path:
    """Six bitmaps of equal size and different content."""
    for seed in range(6):
        file = tmp_path / "images" / ("cat", "dog")[seed % 2] / f"{seed}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        paint(file, seed)
    return tmp_path / "images"


def paint(file: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(file)


def touch(root: Path, seconds: int = 5) -> None:
    for file in root.rglob("*.bmp"):
        os.utime(file, (seconds, seconds))


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The list of files that are read for hashing."""
    from redi.data.storage import contents

    files = []
    monkeypatch.setattr(contents, "sha256", lambda path, sha256=contents.sha256: files.append(path) or sha256(path))
    return files


def both(root: Path) -> tuple[str, str]:
    """Return the data set after an audit has read it."""
    data = ImageFolder(path=str(root))
    return data.fingerprint(), data.content_fingerprint()


def test_a_usual_start_reads_no_image(root, reads, cache):
    assert ImageFolder(path=str(root)).fingerprint() and not reads and not (cache / "folders").exists()
    first = both(root)
    assert len(reads) == 6
    assert both(root) == first and len(reads) == 6  # remembered


def test_copied_and_touched_images_are_the_same_data_set_and_its_parts_too(root, reads):
    first = both(root)
    part = {"split": "held_out", "held_out_fraction": 0.4}
    held_out = ImageFolder(path=str(root), **part).fingerprint()
    copy = root.with_name("copy")
    shutil.copytree(root, copy, copy_function=shutil.copyfile)  # with times of now
    touch(root)
    for folder in (copy, root):
        assert both(folder) == first and ImageFolder(path=str(folder), **part).fingerprint() == held_out
    assert len(reads) == 18
    assert both(copy) == both(root) == first and len(reads) == 18  # each of these times is known now


def test_one_edited_image_of_the_same_size_makes_another_data_set(root):
    first = both(root)
    paint(root / "cat" / "4.bmp", seed=99)
    os.utime(root / "cat" / "4.bmp", (7, 7))
    edited = both(root)
    assert edited[0] != first[0] and edited[1] != first[1]
    touch(root)
    assert both(root) == edited
    paint(root / "cat" / "4.bmp", seed=4)
    assert both(root) == first  # as it was, at another time


def test_contents_of_another_machine_are_compared_without_what_was_remembered_here(root, monkeypatch, tmp_path):
    first = both(root)
    monkeypatch.setenv("REDI_CACHE", str(tmp_path / "other"))
    touch(root)
    assert both(root)[1] == first[1] and both(root)[0] != first[0]


def test_a_damaged_memory_is_written_again(root, cache, caplog):
    first = both(root)
    (file,) = (cache / "folders").glob("*.json")
    for text in ('{"times": {}, "keys": {}, "sha256_of_the_rest": "x"}', "{", "[]"):
        file.write_text(text)
        assert both(root) == first and "the stored hashes are damaged" in caplog.text
        caplog.clear()


def test_a_cache_folder_that_cannot_be_made_is_no_hindrance(root, monkeypatch, caplog):
    first = both(root)
    monkeypatch.setenv("REDI_CACHE", str(root / "cat" / "0.bmp" / "cache"))
    assert both(root) == first and "hashes of the image files are not stored" in caplog.text
