"""Image files in a folder or a zip file."""

import json
from collections.abc import Callable
from functools import cached_property
from typing import IO

import numpy as np

from redi.data.datasets import EncodedImages, numbered_classes, register
from redi.data.preprocessing import MAX_BYTES
from redi.data.storage.contents import Contents
from redi.data.storage.folder_layout import check_layout, warnings_of
from redi.data.storage.image_sources import open_source
from redi.runtime.paths import local_path
from redi.runtime.spelling import few


@register
class ImageFolder(EncodedImages):
    """Image files in a folder or a zip file, in the order of their names.

    Labels come from `dataset.json` at the root, in the format of the EDM2 and REPA tools:
    `{"labels": [["00000/img00000000.png", 6], ...]}`, or `"labels": null` for unlabelled images. Without that file,
    each top-level folder is a class, even an empty one; deeper files belong to their top-level folder. The sorted names
    get the labels 0, 1, ...; if all names are numbers, they are sorted as numbers. If all images are at the root, they
    are unlabelled: one class, all labels 0.

    Hidden files, system folders and files without the extension of an image are ignored; the audit counts them. A
    folder that almost certainly does not hold classes (such as train and test) raises a ValueError.

    Args:
        path: the folder, the zip file, or a folder inside a zip file (images.zip/images).
        numeric_order: False sorts numbers as text, 10 before 2, like earlier versions.
        preprocessing: a Preprocessing; default: images keep their stored size.
        num_classes, split, held_out_fraction, split_seed: see Dataset.
    """

    def __init__(self, path: str, *, numeric_order: bool = True, **part):
        where = f"ImageFolder.path = {str(path)!r}"
        self.source = open_source(local_path(path), where)
        names = sorted(self.source.files.keys() - {"dataset.json"})
        if not names:
            others = ", ".join(f"{count:,} {kind}" for kind, count in self.source.left_out.items())
            rule = "names must have the extension of an image (.jpg, .png, .webp, ...)"
            raise ValueError(f"{where} has no images; {rule}{others and f', not {others}'}")
        labels: list[int] | np.ndarray | None
        class_names: list[str] | None
        if "dataset.json" in self.source.files:
            labels, class_names = labels_of_index(lambda: self.source.open("dataset.json"), names, where)
        else:
            if part.get("num_classes") != 1:
                check_layout(self.source, names, str(path).rstrip("/"), where)
            folders = self.source.folders
            numbers = numeric_order and all(name.isascii() and name.isdigit() for name in folders)
            class_names = sorted(folders, key=(lambda name: (int(name), name)) if numbers else None)
            labels = _labels_of_folders(names, class_names, where)
        super().__init__(names=names, labels=labels, class_names=class_names, **part)
        self.left_out, self.warnings = self.source.left_out, warnings_of(self.source)

    def read(self, index: int) -> IO[bytes]:
        return self.source.open(self.source_names[index])

    @cached_property
    def contents(self) -> Contents:
        """Identity and content hash of the files."""
        return Contents(self.source.files, self.source_names, self.source.root)

    def provenance(self) -> dict:
        """Return a record without the path: a moved folder is the same data set, and caches stay valid."""
        return {
            "dataset": "ImageFolder",
            "num_files": len(self.source_names),
            "files": self.contents.key,
            "preprocessing": self.preprocessing.provenance(),
        }

    def content_fingerprint(self) -> str:
        return self._hash(self.provenance() | {"files": self.contents.sha256})


def _labels_of_folders(names: list[str], class_names: list[str], where: str) -> list[int] | None:
    """Return labels with one class per top-level folder; None if all images are at the root."""
    if len(at_root := [name for name in names if "/" not in name]) == len(names):
        return None
    if at_root:
        raise ValueError(
            f"{where} has images both at the root ({few(at_root)}) and in class folders ({few(class_names)}): "
            "move those at the root to a folder, or list all labels in dataset.json"
        )
    label_of = {name: label for label, name in enumerate(class_names)}
    return [label_of[name.partition("/")[0]] for name in names]


def labels_of_index(
    read: Callable[[], IO[bytes]], names: list[str], where: str
) -> tuple[np.ndarray | None, list[str] | None]:
    """Read the labels of `names` from dataset.json; return labels and class names (both None if unlabelled)."""
    where = f"{where}: dataset.json"
    try:
        with read() as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"has more than {MAX_BYTES:,} bytes")
        pairs = json.loads(text)["labels"]
        label_of = None if pairs is None else {name.replace("\\", "/"): label for name, label in pairs}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        reason = f"{type(cause).__name__}: {str(cause)[:200]}"
        expected = '{"labels": [["file name", label], ...]} or {"labels": null}'
        raise ValueError(f"{where} must be {expected} ({reason})") from cause
    if label_of is None:
        return None, None
    if len(label_of) < len(pairs):
        raise ValueError(f"{where} lists {len(pairs) - len(label_of)} files more than once: list each once")
    if absent := sorted(set(label_of) - set(names)):
        raise ValueError(f"{where} lists {len(absent)} images that do not exist: {few(absent)}; remove them")
    if unlisted := sorted(set(names) - set(label_of)):
        raise ValueError(f"{where} has no label for {len(unlisted)} images: {few(unlisted)}; add their labels")
    for name, label in label_of.items():
        if type(label) is not int or not 0 <= label < 2**63:
            pair = f"the label {str(label)[:40]} for {name}"
            raise ValueError(f"{where} has {pair}; labels must be integers of at least 0")
    labels = np.array([label_of[name] for name in names], dtype=np.int64)
    return labels, numbered_classes(labels, where)
