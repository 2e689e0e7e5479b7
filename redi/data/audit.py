"""Audit a data set: check every image and label before the first training step."""

import inspect
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from redi.core.registry import configurable
from redi.data.datasets import Dataset, UnreadableImage
from redi.runtime.checksums import BrokenArtefact, read_sealed
from redi.runtime.progress import in_threads

log = logging.getLogger(__name__)


class AuditError(ValueError):
    """A data set is not fit for training; `record` is the incomplete record of the audit."""

    def __init__(self, problems: list[str], record: dict):
        self.record = {**record, "refused": problems}
        title = f"the data set {record['dataset']} (split {record['split']!r}) is not fit for training"
        super().__init__("\n".join([f"{title}:", *(f"- {problem}" for problem in problems)]))


@configurable(trains=True)
def audit(
    dataset: Dataset, *, batch_size: int, skip_unreadable: bool = False, allow_missing_classes: bool = False
) -> tuple[Dataset, dict]:
    """Decode every image once; return the data set to train on and a record of its content as JSON values.

    Args:
        batch_size: images per training step over all devices, to compute the steps per epoch.
        skip_unreadable: leave out images that cannot be decoded instead of raising an error.
        allow_missing_classes: accept classes without images.

    Raises AuditError (a ValueError) if there are no images, labels are outside [0, num_classes), classes have no
    images, images are unreadable, or sizes differ or are not square after preprocessing.
    """
    if batch_size < 1:
        raise ValueError(f"audit.batch_size = {batch_size} must be at least 1")
    record: dict[str, Any] = {"dataset": type(dataset).__name__, "split": dataset.split, "batch_size": batch_size}
    record |= {"left_out": dict(dataset.left_out), "warnings": list(dataset.warnings)}
    record.update(label_facts(dataset, batch_size))
    if problems := _label_problems(dataset, record, allow_missing_classes):
        raise AuditError(problems, record)

    facts, unreadable = _decode_all(dataset)
    record["unreadable"] = {dataset.names[position]: cause for position, cause in unreadable.items()}
    if unreadable and skip_unreadable:
        dataset = dataset.without(list(unreadable))
        record.update(label_facts(dataset, batch_size))  # the last image of a class may be among them
        problems += _label_problems(dataset, record, allow_missing_classes)
        record["warnings"].append(f"{len(unreadable)} unreadable images were left out")
    elif unreadable:
        causes, more = list(unreadable.values())[:20], len(unreadable) - 20
        lines = [f"    {cause}" for cause in causes] + [f"    ... and {more} more"] * (more > 0)
        title = "images cannot be read: repair or delete them, or set audit.skip_unreadable = True"
        problems.append("\n".join([f"{len(unreadable)} {title}", *lines]))
    if facts:
        _add_size_facts(dataset, facts, record)
        problems += _size_problems(dataset, facts, record)
    if 0 < len(dataset) < batch_size:
        record["warnings"].append(f"the batch of {batch_size} is larger than the data set of {len(dataset)} images")
    if problems:
        raise AuditError(problems, record)
    return dataset, record


def class_names(folder: str | Path) -> list[str] | None:
    """Return the names of labels 0, 1, ... from the audit in a run's folder; None if it has no class names."""
    path = Path(folder) / "audit.json"
    try:
        names = (read_sealed(path) or {}).get("class_names")
    except BrokenArtefact as error:
        log.warning("showing classes by number, because %s is damaged: %s", path, error)
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def label_facts(dataset: Dataset, batch_size: int) -> dict:
    """Count the images of each class; return entries of the audit record."""
    per_class = dict(sorted(Counter(dataset.labels.tolist()).items()))
    counts = [per_class.get(label, 0) for label in range(dataset.num_classes)]
    missing = [label for label, count in enumerate(counts) if not count]
    return {
        "num_images": len(dataset),
        "num_classes": dataset.num_classes,
        "class_names": dataset.class_names[: dataset.num_classes] if dataset.num_classes > 1 else None,
        "num_classes_present": len(per_class),
        "num_missing_classes": len(missing),
        "missing_classes": [_class_name(dataset, label) for label in missing[:20]],
        "label_range": [min(per_class), max(per_class)] if per_class else None,
        "images_per_class_min_median_max": [min(counts), float(np.median(counts)), max(counts)] if counts else None,
        "images_per_class": {_class_name(dataset, label): count for label, count in per_class.items()},
        "steps_per_epoch": round(len(dataset) / batch_size, 2),
    }


def _class_name(dataset: Dataset, label: int) -> str:
    return dataset.class_names[label] if 0 <= label < len(dataset.class_names) else f"label {label}"


def _label_problems(dataset: Dataset, record: dict, allow_missing_classes: bool) -> list[str]:
    name = record["dataset"]
    if not len(dataset):
        return [f"it has no images: check {name}.split, {name}.held_out_fraction and audit.skip_unreadable"]
    low, high = record["label_range"]
    if low < 0 or high >= dataset.num_classes:
        outside = (dataset.labels < 0) | (dataset.labels >= dataset.num_classes)
        remedy = f"set {name}.num_classes = {high + 1}" if low >= 0 else "number the labels from 0"
        first = dataset.names[int(np.flatnonzero(outside)[0])]
        return [
            f"labels run from {low} to {high}, but a model with {dataset.num_classes} classes takes 0 to "
            f"{dataset.num_classes - 1} ({outside.sum()} images are outside, first {first}): {remedy}"
        ]
    if not record["num_missing_classes"] or allow_missing_classes:
        return []
    missing = ", ".join(record["missing_classes"]) + (", and more" if record["num_missing_classes"] > 20 else "")
    # A smaller num_classes helps only if the labels are 0, 1, ... without a gap.
    fits = _takes(dataset, "num_classes") and high + 1 == record["num_classes_present"]
    remedy = f"set {name}.num_classes = {high + 1} for a model of only these classes, or " if fits else ""
    return [
        f"only {record['num_classes_present']} of the model's {dataset.num_classes} classes have images; "
        f"{record['num_missing_classes']} have none: {missing}. If no images are missing, {remedy}"
        "set audit.allow_missing_classes = True"
    ]


def _takes(dataset: Dataset, argument: str) -> bool:
    return argument in inspect.signature(type(dataset)).parameters


def _decode_all(dataset: Dataset) -> tuple[dict[int, tuple[int, int, str]], dict[int, str]]:
    """Return {position: (width, height, mode)} of readable images and {position: cause} of the others."""

    def inspect_image(position: int) -> tuple[int, int, str] | str:
        try:
            return dataset.inspect(int(dataset.indices[position]))
        except UnreadableImage as cause:
            return str(cause)

    threads = min(32, os.cpu_count() or 1)
    results = [*in_threads(inspect_image, range(len(dataset)), threads, "checking every image")]
    unreadable = {position: cause for position, cause in enumerate(results) if isinstance(cause, str)}
    return {position: facts for position, facts in enumerate(results) if position not in unreadable}, unreadable


def _add_size_facts(dataset: Dataset, facts: dict[int, tuple[int, int, str]], record: dict) -> None:
    sizes = Counter((width, height) for width, height, _ in facts.values())
    after: Counter[tuple[int, int]] = Counter()
    for size, count in sizes.items():
        after[dataset.output_size(*size)] += count
    widths, heights = zip(*sizes, strict=True)
    record |= {
        "sizes": _named(sizes.most_common(10)),
        "num_sizes": len(sizes),
        "width_min_max": [min(widths), max(widths)],
        "height_min_max": [min(heights), max(heights)],
        "modes": dict(Counter(mode for *_, mode in facts.values()).most_common()),
        "sizes_after_preprocessing": _named(after.most_common(10)),
        "num_sizes_after_preprocessing": len(after),
    }
    small = [(min(size), n) for n, (*size, _) in facts.items() if min(size) < min(dataset.output_size(*size))]
    if small:
        _, position = min(small)
        width, height, _ = facts[position]
        smallest = f"the smallest is {dataset.names[position]}: {width}x{height}"
        record["warnings"].append(
            f"{len(small):,} of {len(facts):,} images are smaller than the training size and are enlarged ({smallest})"
        )


def _named(sizes: list[tuple[tuple[int, int], int]]) -> dict[str, int]:
    return {f"{width}x{height}": count for (width, height), count in sizes}


def _size_problems(dataset: Dataset, facts: dict[int, tuple[int, int, str]], record: dict) -> list[str]:
    remedy = "store them in one square size"
    if _takes(dataset, "preprocessing"):
        remedy = f"set {record['dataset']}.preprocessing = Preprocessing() and, e.g., Preprocessing.image_size = 256"
    elif _takes(dataset, "image_size"):
        remedy = f"set {record['dataset']}.image_size"
    if (num_sizes := record["num_sizes_after_preprocessing"]) > 1:
        sizes = list(record["sizes_after_preprocessing"].items())[:3]
        common = ", ".join(f"{size} ({count:,})" for size, count in sizes)
        return [
            f"the images have {num_sizes} different sizes after preprocessing (most common, width x height: {common}), "
            f"but all must be equal: {remedy}"
        ]
    first, (*size, _) = next(iter(facts.items()))
    width, height = dataset.output_size(*size)
    image = dataset.load(int(dataset.indices[first]))
    kind, shape = getattr(image, "dtype", type(image).__name__), np.shape(image)
    if shape != (height, width, 3) or kind != np.uint8:  # a plug-in breaks the interface
        return [
            f"{record['dataset']}.load returns {kind} {shape} for {dataset.names[first]}, but inspect and "
            f"output_size promise uint8 {(height, width, 3)}"
        ]
    problem = f"the images are {width} wide and {height} high after preprocessing, but must be square: {remedy}"
    return [problem] if width != height else []


def summary(record: dict) -> str:
    """Summarize an audit record in a few words."""
    names = record.get("class_names") or []
    classes = f"{record['num_classes']:,} classes" + (f" ({names[0]} to {names[-1]})" if names else "")
    return f"{record['dataset']}, {record['num_images']:,} images of {classes}"


def format_audit(record: dict) -> str:
    """Format an audit record as a table with a fact per line; the record of a failed audit may be incomplete."""
    low, median, high = record["images_per_class_min_median_max"] or (0, 0, 0)
    rows = {
        "data set": f"{record['dataset']}, split {record['split']}",
        "images": f"{record['num_images']:,}",
        "classes": f"{record['num_classes_present']:,} of the model's {record['num_classes']:,} have images",
        "read as": _class_labels(record),
        "missing": _listed(record["missing_classes"], record["num_missing_classes"]),
        "images per class": f"{low:,} to {high:,}, median {median:,g}",
        "labels": "{} to {}".format(*record["label_range"]) if record["label_range"] else "none",
    }
    if record.get("left_out"):
        rows["left out"] = ", ".join(f"{kind}: {count:,}" for kind, count in record["left_out"].items())
    if "sizes" in record:
        rows["stored sizes"] = _listed([f"{size}: {n:,}" for size, n in record["sizes"].items()], record["num_sizes"])
        rows["width, height"] = "{} to {}, {} to {}".format(*record["width_min_max"], *record["height_min_max"])
        rows["modes"] = ", ".join(f"{mode}: {count:,}" for mode, count in record["modes"].items())
        rows["sizes used"] = _listed(list(record["sizes_after_preprocessing"]), record["num_sizes_after_preprocessing"])
    if "unreadable" in record:
        rows["unreadable"] = _listed(list(record["unreadable"]), len(record["unreadable"]))
    rows["steps per epoch"] = f"{record['steps_per_epoch']:,g} of batch {record['batch_size']:,}"
    lines = [f"{name:<16}  {value}" for name, value in rows.items()]
    return "\n".join(lines + [f"{'warning':<16}  {warning}" for warning in record["warnings"]])


def _class_labels(record: dict) -> str:
    if not (names := record.get("class_names")):
        return "images without labels" if record["num_classes"] == 1 else "classes without names"
    shown = dict(enumerate(names[:3])) | {len(names) - 1: names[-1]}
    pairs = [f"{label} = {name!r}" for label, name in shown.items()]
    return f"{len(names):,} classes, " + ", ".join(pairs[:3] + ["..."] * (len(names) > 4) + pairs[3:])


def _listed(shown: list[str], count: int) -> str:
    return "none" if not count else ", ".join(shown[:4]) + (f", ... ({count:,} in all)" if count > 4 else "")
