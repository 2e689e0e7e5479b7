"""The labels of samples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redi.runtime.checksums import BrokenArtefact, read_sealed
from redi.runtime.randomness import mix_seeds

SCHEMES = ("equal", "random", "dataset", "null")
LABEL_SEED = 0x1ABE1  # arbitrary


def choose_labels(scheme: str | Sequence[int], num_images: int, num_classes: int, folder: Path | None = None) -> Tensor:
    """Return labels (num_images,) int64. `scheme`: `sample.labels`; 'dataset' reads the audit in the run's `folder`."""
    if scheme == "equal":
        return torch.arange(num_images) % num_classes
    if scheme == "random":
        return torch.tensor([mix_seeds(LABEL_SEED, index) % num_classes for index in range(num_images)])
    if scheme == "null":
        return torch.full((num_images,), num_classes)
    if scheme == "dataset":
        return in_proportion(class_counts(folder, num_classes), num_images)
    return torch.tensor(scheme).repeat(-(-num_images // len(scheme)))[:num_images]


def in_proportion(counts: Sequence[int], num_images: int) -> Tensor:
    """Return labels (num_images,) in proportion to `counts`, spread evenly: any first N are nearly in proportion."""
    weights = np.asarray(counts, dtype=np.int64)
    whole, rest = np.divmod(weights * num_images, weights.sum())
    whole[np.argsort(-rest, kind="stable")[: num_images - whole.sum()]] += 1
    labels = np.repeat(np.arange(len(weights)), whole)
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in whole if count])
    return torch.from_numpy(labels[np.argsort(places, kind="stable")])


def class_counts(folder: Path | None, num_classes: int) -> list[int]:
    """Read the number of training images of every class from a run's audit. Raises ValueError if it is missing."""
    if num_classes == 1:
        return [1]
    assert folder is not None
    path, advice = Path(folder) / "audit.json", "set sample.labels = 'equal', or a list of labels"
    what = f" needs {path}, which redi.train writes for runs with a configuration"
    try:
        if (record := read_sealed(path)) is not None:
            classes, counts = record["num_classes"], list(record["images_per_class"].values())  # in the labels' order
            if classes == num_classes == len(counts):
                return counts
            what = f": {path} has images of {len(counts)} of {classes} classes, but the model has {num_classes} classes"
    except (BrokenArtefact, KeyError, AttributeError):
        what = f": {path} is not an audit"
    raise ValueError(f"sample.labels = 'dataset'{what}: {advice}")
