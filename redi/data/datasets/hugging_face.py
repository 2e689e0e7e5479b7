"""Data sets of the Hugging Face library, saved to disk."""

import io
from typing import IO

import numpy as np

from redi.data.datasets import EncodedImages, register
from redi.runtime.paths import local_path


@register
class HuggingFace(EncodedImages):
    """A data set saved with `save_to_disk` of the package `datasets`. Nothing is downloaded.

    Args:
        path: the folder.
        split_name: the name of the split in a DatasetDict; ignored if the folder has a single Dataset.
        image_column: the column of type Image.
        label_column: the column of type ClassLabel or integer; None: unlabelled, one class.
        preprocessing: a Preprocessing; default: images keep their stored size.
        num_classes, split, held_out_fraction, split_seed: see Dataset.
    """

    def __init__(
        self, path: str, *, split_name: str = "train", image_column: str = "image", label_column: str | None = "label",
        **part,
    ):  # fmt: skip
        try:
            import datasets  # the third-party package, not redi.data.datasets
        except ImportError as cause:
            raise ImportError("HuggingFace needs datasets: pip install 'redi-diffusion[huggingface]'") from cause
        table = _load(path, split_name)
        _check_column(table, "image_column", image_column, datasets.Image)
        labels, class_names = _labels(table, label_column)
        self.provenance_ = {
            "dataset": "HuggingFace",
            "fingerprint": table._fingerprint,  # the package's hash of contents and transforms; it has no public name
            "image_column": image_column,
            "label_column": label_column,
        }
        # decode=False returns encoded bytes, so that damaged images are reported by name like files.
        self.table = table.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        self.image_column, self.folder = image_column, local_path(path).resolve()
        names = [f"{split_name}[{row}]" for row in range(len(table))]
        super().__init__(names=names, labels=labels, class_names=class_names, **part)

    def read(self, index: int) -> IO[bytes]:
        image = self.table[index][self.image_column]
        if image is None:
            raise ValueError("the row has no image")
        if image["bytes"] is not None:
            return io.BytesIO(image["bytes"])
        path = (self.folder / str(image["path"])).resolve()
        if not path.is_relative_to(self.folder) or not path.is_file():
            problem = f"the row refers to a file outside the data set, {str(path)[:200]}"
            raise ValueError(f"{problem}: save the data set with embedded images, the default of save_to_disk")
        return open(path, "rb")

    def provenance(self) -> dict:
        return {**self.provenance_, "preprocessing": self.preprocessing.provenance()}


def _load(path: str, split_name: str):
    import datasets

    where = f"HuggingFace.path = {str(path)!r}"
    folder = local_path(path)
    if not folder.is_dir():
        raise ValueError(f"{where} is not a folder (looked for {folder.absolute()}); bind the path of a data set")
    try:
        stored = datasets.load_from_disk(str(folder))
    except FileNotFoundError as cause:
        raise ValueError(
            f"{where} was not written by save_to_disk of the package datasets. Load the data set with that package and "
            "save it: datasets.load_dataset(...).save_to_disk(folder); for a folder of image files set ImageFolder.path"
        ) from cause
    except Exception as cause:  # the package raises many kinds of exceptions on damaged files
        reason = f"{type(cause).__name__}: {str(cause)[:300]}"
        raise ValueError(f"{where} cannot be read ({reason}): save it again") from cause
    binding = f"HuggingFace.split_name = {split_name!r}"
    if isinstance(stored, datasets.DatasetDict):
        if split_name not in stored:
            splits = ", ".join(sorted(stored))
            raise ValueError(f"{binding} must be a split of the data set at {str(path)!r}: {splits}")
        return stored[split_name]
    if split_name not in ("train", str(stored.split)):  # 'train' may be just the default
        raise ValueError(f"{binding}: {str(path)!r} has a single data set without named splits; remove the binding")
    return stored


def _check_column(table, argument: str, column: str, kind) -> None:
    if column not in table.features:
        columns = ", ".join(table.column_names)
        hint = "; bind None to train without labels" if argument == "label_column" else ""
        raise ValueError(f"HuggingFace.{argument} = {column!r} must be a column of the data set: {columns}{hint}")
    if kind and not isinstance(table.features[column], kind):
        feature = table.features[column]
        raise ValueError(f"HuggingFace.{argument} = {column!r} must be a column of images, not {feature}")


def _labels(table, column: str | None) -> tuple[np.ndarray | None, list[str] | None]:
    import datasets

    if column is None:
        return None, None
    _check_column(table, "label_column", column, None)
    feature, where = table.features[column], f"HuggingFace.label_column = {column!r}"
    has_names = isinstance(feature, datasets.ClassLabel)
    if not has_names and not (isinstance(feature, datasets.Value) and "int" in feature.dtype):
        raise ValueError(
            f"{where} is a column of {feature}, but labels must be of type ClassLabel or integer. Convert it "
            f"(table.class_encode_column({column!r}) converts strings to classes) or bind None to train without labels"
        )
    values = table.with_format("arrow")[:][column]
    if values.null_count:
        unlabelled = f"{values.null_count} of {len(table)} rows have no label"
        raise ValueError(f"{where}: {unlabelled}. Remove these rows, or bind None to train without labels")
    return values.to_numpy().astype(np.int64), feature.names if has_names else None
