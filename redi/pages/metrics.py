"""A run's metrics: a table, and for each metric how it was measured, in full."""

import json
import logging

from redi.pages.files import Folder
from redi.pages.frame import record_table
from redi.pages.markup import (
    Html,
    details,
    element,
    is_number,
    join,
    number,
    phrase,
    scrolling,
    section,
    words,
)

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
ABOUT_THE_VALUE = ("metric", "value", "better", "per_seed", "spread", *BESIDE, "per_class", "note", "warnings",
                   "num_samples", "num_reference")  # fmt: skip
OWN_NETWORK = (
    "Distances in a network that was trained for this data set are no FIDs; they compare only with distances in the "
    "same network, by the hash of its weights."
)


def metrics_of_samples(folder: Folder) -> list[dict]:
    """metrics.json, unless it cannot be read, is of an older version, or the samples were drawn anew since."""
    metrics = folder.json("metrics.json", list) or []
    if not all(isinstance(metric, dict) and "metric" in metric for metric in metrics):
        folder.notes.append("metrics.json cannot be read: it is no list of metrics.")
        return []
    again = f"redi.evaluate --run_dir={folder.path}"
    if not all(isinstance(metric.get("samples"), dict) for metric in metrics):
        folder.notes.append(
            "metrics.json was written by an older version of redi, whose records say less, and is left out: draw the "
            f"samples again and run {again}"
        )
        return []
    if metrics and (folder.path / "samples").exists():
        from redi.evaluation.samples.stored import load_samples  # imports torch

        try:
            digest = load_samples(folder.path).sha256
        except (ValueError, OSError) as error:
            folder.notes.append(f"metrics.json is left out, for the samples cannot be read: {error}")
            return []
        if any(metric["samples"].get("samples_sha256") != digest for metric in metrics):
            folder.notes.append(f"metrics.json is of earlier samples and left out: run {again}")
            log.warning("metrics.json is of earlier samples and left out: run %s", again)
            return []
    return metrics


def metrics_section(metrics: list[dict]) -> Html:
    """The section; nothing without metrics."""
    if not metrics:
        return Html()
    headers = ("metric", "value", "better", "beside it", "samples", "reference")
    head = [
        element("th", name, scope="col", class_="number" if name in ("value", "samples") else None) for name in headers
    ]
    rows = [_row(metric) for metric in metrics]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    parts = [scrolling(table, label="metrics")]
    for metric in metrics:  # below the table, where they take the whole width of a phone
        named = element("strong", words(metric["metric"]), ": ")
        parts += [element("p", named, message, class_="warning") for message in _listed(metric.get("warnings"))]
        parts += [element("p", named, message, class_="soft") for message in _listed(metric.get("note"))]
    if any("domain_network" in str(metric["metric"]) for metric in metrics):
        parts.append(element("p", OWN_NETWORK, class_="soft"))
    parts += [_how(metric) for metric in metrics]
    parts.append(details("metrics.json in full", element("pre", json.dumps(metrics, indent=2), tabindex="0")))
    return section("Metrics", *parts)


def _row(metric: dict) -> Html:
    beside = [f"{name} {number(metric[key])}" for key, name in BESIDE.items() if metric.get(key) is not None]
    cells = [
        element("th", words(metric["metric"]), scope="row"),
        element("td", element("strong", _value(metric)), class_="number"),
        element("td", metric.get("better", "–")),
        element("td", join(beside, Html("<br>")) or "–"),
        element("td", _count(metric), class_="number"),
        element("td", _reference(metric)),
    ]
    return element("tr", *cells)


def _value(metric: dict) -> str:
    spread = metric.get("spread")
    return number(metric.get("value")) + (f" ± {number(spread, digits=2)}" if is_number(spread) else "")


def _count(metric: dict) -> str:
    seeds = metric.get("per_seed")
    times = f" × {len(seeds)} seeds" if isinstance(seeds, list) and len(seeds) > 1 else ""
    return number(metric.get("num_samples")) + times


def _reference(metric: dict) -> str:
    reference = metric.get("reference")
    if not isinstance(reference, dict):
        return "none"
    count = f"{number(metric['num_reference'])} of " if metric.get("num_reference") else ""
    split = f", split {reference['split']}" if reference.get("split") else ""
    return count + str(reference.get("dataset", reference.get("name", "a reference"))) + split


def _how(metric: dict) -> Html:
    """The record as a table: nothing in it is left out or shortened, except that matrices are in the full record."""
    samples = metric["samples"]
    value = [("value", _value(metric)), ("better", metric.get("better", "–"))]
    if isinstance(metric.get("per_seed"), list):
        value.append(("per seed", ", ".join(number(part, digits=6) for part in metric["per_seed"])))
        value.append(("± is", "the sample standard deviation over seeds" if is_number(metric.get("spread")) else
                      "not known: one seed"))  # fmt: skip
    value += [(name, number(metric[key], digits=6)) for key, name in BESIDE.items() if metric.get(key) is not None]
    value += [(f"class {key}", number(part)) for key, part in _dict(metric.get("per_class")).items()]
    value += [("samples, per seed", number(metric.get("num_samples")))]
    value += [("reference images", number(metric["num_reference"]))] if metric.get("num_reference") else []
    value += [("warning", message) for message in _listed(metric.get("warnings"))]
    value += [("note", message) for message in _listed(metric.get("note"))]
    known = (*ABOUT_THE_VALUE, "samples", "network", "reference", "versions")
    value += [(words(key), phrase(part)) for key, part in metric.items() if key not in known]
    groups = [("The number", value)]
    for heading, record in (
        ("How the samples were drawn", samples),
        ("Feature network", metric.get("network")),
        ("Reference", metric.get("reference")),
        ("Software", metric.get("versions")),
    ):
        rows = _dict(record) if not record or isinstance(record, dict) else {"": record}
        groups.append((heading, [(words(key), phrase(part)) for key, part in rows.items()] or [("", "none")]))
    return details(f"How {words(metric['metric'])} was measured: {_summary(samples)}", record_table(groups))


def _summary(samples: dict) -> str:
    sampler = _dict(samples.get("sampler")).get("name", "an unknown sampler")
    rules = [
        f"{rule.get('name', '?')} {number(rule['scale']) if 'scale' in rule else ''}".strip()
        for rule in samples.get("guidance") or [] if isinstance(rule, dict)
    ]  # fmt: skip
    seeds = samples.get("seeds", samples.get("seed"))
    return (
        f"{sampler}, {number(samples.get('function_evaluations'))} function evaluations, "
        f"guidance {', '.join(rules) or 'none'}, {samples.get('weights', '?')} weights of step "
        f"{number(samples.get('checkpoint_step'))}, seeds {phrase(seeds)}, labels {phrase(samples.get('labels'))}"
    )


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _listed(value: object) -> list[str]:
    if not value:
        return []
    return [str(part) for part in value] if isinstance(value, list) else [str(value)]
