"""A run's metrics: a table, and for each metric how it was measured, in full."""

import logging

from redi.pages.files import Folder
from redi.pages.wording import is_number, number

log = logging.getLogger(__name__)

# What stands beside a value, in the order and the words in which it is shown.
BESIDE = {
    "standard_error": "standard error",
    "bias": "bias of a finite set",
    "value_at_infinity": "extrapolated to infinitely many samples",
    "floor": "floor",
    "times_floor": "times the floor",
    "ceiling": "ceiling",
    "fraction": "fraction of the way from floor to ceiling",
    "same_class": "with another image of the class",
    "std_over_splits": "standard deviation over splits",
    "held_out_accuracy": "accuracy on held-out images",
}
RECORDS = {
    "samples": "How the samples were drawn",
    "network": "Feature network",
    "reference": "Reference",
    "versions": "Software",
}


def metrics_of_samples(folder: Folder) -> list[dict]:
    """metrics.json, unless it cannot be read, is of an older version, or the samples were drawn again since."""
    metrics = folder.json("metrics.json", list) or []
    again = f"redi.evaluate --run_dir={folder.path}"
    if not all(isinstance(metric, dict) and "metric" in metric for metric in metrics):
        folder.notes.append("metrics.json cannot be read: it is not a list of metrics.")
    elif not all(isinstance(metric.get("samples"), dict) for metric in metrics):
        folder.notes.append(
            "metrics.json was written by an older version of redi, whose records say less, and is left out: draw the "
            f"samples again and run {again}"
        )
    elif not metrics or not (folder.path / "samples").exists():
        return metrics
    else:
        from redi.evaluation.samples.stored import load_samples  # imports torch

        try:
            digest = load_samples(folder.path).sha256
            if all(metric["samples"].get("samples_sha256") == digest for metric in metrics):
                return metrics
            folder.notes.append(f"metrics.json is of earlier samples and left out: run {again}")
            log.warning(folder.notes[-1])
        except (ValueError, OSError) as error:
            folder.notes.append(f"metrics.json is left out because the samples cannot be read: {error}")
    return []


def record_rows(metric: dict) -> dict[str, list[tuple[str, object]]]:
    """Names and values under headings; nothing is left out, except that the template shortens matrices."""
    rows = [(BESIDE.get(key, key), part) for key, part in metric.items() if key not in RECORDS]
    if isinstance(metric.get("per_seed"), list):
        known = is_number(metric.get("spread"))
        rows.append(("± is", "the sample standard deviation over seeds" if known else "not known: one seed"))
    groups = {"The number": rows}
    for key, heading in RECORDS.items():
        record = metric.get(key) or {"": "none"}
        groups[heading] = list(record.items()) if isinstance(record, dict) else [("", record)]
    return groups


def beside(metric: dict) -> list[str]:
    """What a value is read by."""
    return [f"{name} {number(metric[key])}" for key, name in BESIDE.items() if metric.get(key) is not None]
