"""Folders whose top-level folders are not classes: an error names the binding to change, or a warning is given."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from redi.data.audit import audit, format_audit
from redi.data.datasets.image_folder import ImageFolder


def images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name)
    return root


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    return path


NUMBERS = [f"{number}/x.png" for number in range(11)]


def test_numbers_sort_as_numbers_and_other_names_as_text(tmp_path):
    path = str(images(tmp_path, *NUMBERS))
    data = ImageFolder(path=path)
    assert data.class_names == [str(number) for number in range(11)]
    assert [data.class_names[label] for label in data.labels] == [name.split("/")[0] for name in data.names]
    assert ImageFolder(path=path, numeric_order=False).class_names[:3] == ["0", "1", "10"]
    images(tmp_path, "other/x.png")
    assert ImageFolder(path=path).class_names == sorted([*map(str, range(11)), "other"])


MISTAKES = {
    "parts": (["train/cat/1.png", "val/cat/2.png"], {}, "not classes. Bind ImageFolder.path = '{}/train'"),
    "the other part": (
        ["train/cat/1.png", "val/cat/2.png"], {},
        "evaluate on val instead, also bind held_out/ImageFolder.path = '{}/val'",
    ),  # fmt: skip
    "parts without classes": (["Train/1.png", "test/2.png", "valid/3.png"], {}, "path = '{}/Train'"),
    "a folder around the classes": (["pets/cat/1.png", "pets/dog/2.png"], {}, "ImageFolder.path = '{}/pets'; or"),
    "a folder around dataset.json": (["pets/1.png"], {"pets/dataset.json": '{"labels": null}'}, "path = '{}/pets'; or"),
    "metadata": (["1.png", "2.png"], {"metadata.jsonl": "{}"}, "metadata.jsonl is not read.*hugging_face.gin"),
    "metadata of a part": (["train/1.png"], {"train/metadata.csv": ""}, "train/metadata.csv is not read.*gin"),
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(("names", "texts", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_all_but_certainly_a_mistake_is_refused(tmp_path, names, texts, message, packed):
    root = images(tmp_path / "x", *names)
    for name, text in texts.items():
        (root / name).write_text(text)
    path = str(zipped(root) if packed else root)
    with pytest.raises(ValueError, match=message.format(path)):
        ImageFolder(path=path)
    assert len(ImageFolder(path=path, num_classes=1)) == len(names)  # without labels there is no mistake


def test_a_folder_inside_of_a_zip_is_the_folder_that_it_was_packed_from(tmp_path):
    root = images(tmp_path / "x", "pets/cat/1.png", "pets/dog/2.png", "pets/dog/3.png", "read.png")
    labels = [["cat/1.png", 1], ["dog/2.png", 0], ["dog/3.png", 0]]
    (root / "pets/dataset.json").write_text(json.dumps({"labels": labels}))
    inside, folder = ImageFolder(path=f"{zipped(root)}/pets"), ImageFolder(path=str(root / "pets"))
    assert inside.names == folder.names and inside.labels.tolist() == folder.labels.tolist() == [1, 0, 0]
    assert all(np.array_equal(inside.load(i), folder.load(i)) for i in range(3))
    with pytest.raises(ValueError, match="has no images"):
        ImageFolder(path=f"{root}.zip/pet")


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_what_is_left_out_is_counted_and_what_looks_like_an_image_is_warned_of(tmp_path, packed):
    hidden = "dog/@eaDir/2.png", "dog/.Trash-1/9.png", "$RECYCLE.BIN/3.png", "lost+found/4.png", "Thumbs/1.png"
    root = images(tmp_path / "x", "cat/1.png", "dog/2.png", "cat/@eaDir/1.png", *hidden)
    for name in ("cat/3.HEIC", "dog/4.heic", "notes.txt", "dog/LICENSE", "cat/metadata.jsonl"):
        (root / name).write_text("")
    data = ImageFolder(path=str(zipped(root) if packed else root))
    assert data.class_names == ["cat", "dog"] and data.names == ["cat/1.png", "dog/2.png"]
    assert data.left_out == {
        "@eaDir": 2, "hidden": 1, "$RECYCLE.BIN": 1, "lost+found": 1, "Thumbs": 1, ".heic": 2, ".txt": 1,
        "without an ending": 1,
    }  # fmt: skip
    record = audit(data, batch_size=2)[1]
    heic, metadata = record["warnings"]
    assert "2 .heic; convert" in heic and "cat/metadata.jsonl is not read" in metadata
    table = format_audit(json.loads(json.dumps(record)))
    assert "read as           2 classes, 0 = 'cat', 1 = 'dog'\n" in table and ".heic: 2, .txt: 1" in table


def test_a_folder_without_images_tells_what_it_holds(tmp_path):
    (tmp_path / "a.heic").write_text(""), (tmp_path / "b.heic").write_text("")
    with pytest.raises(ValueError, match="has no images; names must have .* not 2 .heic"):
        ImageFolder(path=str(tmp_path))


def test_many_classes_are_told_by_the_first_and_the_last(tmp_path):
    assert "11 classes, 0 = '0', 1 = '1', 2 = '2', ..., 10 = '10'" in format_audit(
        audit(ImageFolder(path=str(images(tmp_path, *NUMBERS))), batch_size=2)[1]
    )
    record = audit(ImageFolder(path=str(tmp_path), num_classes=1), batch_size=2)[1]
    assert "read as           images without labels\n" in format_audit(record)
    del record["class_names"]  # of an earlier version
    assert format_audit(record | {"num_classes": 2})


@pytest.mark.parametrize("name", [b"caf\xe9/1.png", b"cat/caf\xe9.png"], ids=["class", "file"])
def test_a_name_that_is_not_utf8_is_refused_in_letters_that_every_terminal_shows(tmp_path, name):
    images(tmp_path, "cat/2.png", "dog/3.png", os.fsdecode(name))
    with pytest.raises(ValueError, match=r"ImageFolder: the name '\S*caf\\udce9\S*' is not UTF-8: rename it"):
        ImageFolder(path=str(tmp_path))
