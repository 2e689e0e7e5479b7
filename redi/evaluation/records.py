"""The records of metrics.json: each metric is stored with every setting that affects it."""

import json
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import redi
from redi.core.plug_ins import source_sha256
from redi.data.datasets import Dataset
from redi.models.encoders import Encoder
from redi.runtime.checksums import BrokenArtefact, tensors_sha256, unsealed

REQUIRED = (
    "metric", "value", "better", "per_seed", "spread", "num_samples", "num_reference",
    "network", "reference", "samples", "versions",
)  # fmt: skip
AVERAGED = ("standard_error", "value_at_infinity", "bias", "std_over_splits")  # over sets of samples, like the value


def entry(
    metric: str, sets: Sequence[Mapping], *, better: str, num_samples: int, num_reference: int | None,
    conditions: Mapping, warnings: Sequence[str] = (),
) -> dict:  # fmt: skip
    """Return one entry of metrics.json.

    Args:
        sets: {"value": ...} and further fields of every set of samples (one per seed). The entry holds the mean value,
            its sample standard deviation `spread`, the means of the fields in AVERAGED, and the rest of the first set.
        better: 'lower' or 'higher'.
        num_samples: number of samples per seed.
        num_reference: number of reference images; None if unknown, as for stored statistics.
    """
    record: dict[str, Any] = {"metric": metric, **over_seeds([float(one["value"]) for one in sets], better)}
    for name in (name for name in sets[0] if name != "value"):
        record[name] = statistics.fmean(one[name] for one in sets) if name in AVERAGED else sets[0][name]
    if record.get("floor", 0) > 0:
        record["times_floor"] = record["value"] / record["floor"]
    record |= {"num_samples": num_samples, "num_reference": num_reference, **conditions}
    return record | ({"warnings": list(warnings)} if warnings else {})


def over_seeds(values: list[float], better: str) -> dict:
    """Return the mean of a metric over seeds, its spread, and the value of each seed."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"value": statistics.fmean(values), "better": better, "per_seed": values, "spread": spread}


def read_metrics(path: Path) -> list[dict]:
    """Read the entries of metrics.json. Raises BrokenArtefact if it is truncated, altered or of another format."""
    try:
        entries = json.loads(path.read_text())
    except ValueError as error:
        raise BrokenArtefact(f"{path} cannot be read ({error}): run redi.evaluate again") from None
    if not isinstance(entries, list) or not all(isinstance(one, dict) and "metric" in one for one in entries):
        raise BrokenArtefact(f"{path} is not a list of metrics: run redi.evaluate again")
    for one in entries:
        unsealed(one, path)
    return entries


def conditions(samples: Mapping, network: Mapping | None, reference: Mapping) -> dict:
    """Return the fields that all entries of a network share; the record of the samples without parts and files."""
    record = {name: value for name, value in samples.items() if name not in ("files", "parts")}
    return {"network": network, "reference": dict(reference), "samples": record, "versions": software()}


def network_record(network: Encoder, trained_on: Dataset | None) -> dict:
    """Return the provenance of a feature network with one hash of its weights."""
    provenance = network.provenance()
    digest = provenance.get("weights_sha256") or provenance.get("sha256") or tensors_sha256(network.state_dict())
    learned = {"trained_on": reference_record(trained_on)} if network.learns_from_data else {}
    source = {"source_sha256": code} if (code := source_sha256(type(network))) else {}
    return provenance | {"sha256": digest, **learned, **source}


def reference_record(reference) -> dict:
    """Return the provenance of a data set (with its split) or of stored statistics, and the hash of its contents."""
    part = {"split": reference.split, "num_images": len(reference)} if isinstance(reference, Dataset) else {}
    return reference.provenance() | part | {"sha256": reference.fingerprint()}


def software() -> dict[str, str]:
    """Return the versions of the packages that compute the metrics."""
    packages = {name: version(name) for name in ("numpy", "scipy", "pillow", "timm")}
    return {"redi": redi.__version__, "torch": torch.__version__, "cleanfid": version("clean-fid")} | packages


def format_metrics(metrics: Sequence[Mapping]) -> str:
    """Format metrics as a table: name, value with its spread over seeds, and floor, ceiling and errors."""
    table = [_row(metric) for metric in metrics]
    names, values = (max((len(row[column]) for row in table), default=0) for column in (0, 1))
    return "\n".join(f"{name:<{names}}  {value:<{values}}  {note}".rstrip() for name, value, note in table)


def _row(metric: Mapping) -> tuple[str, str, str]:
    value, parts = f"{metric['value']:.4g}", []
    if metric.get("spread") is not None:
        value += f" ± {metric['spread']:.2g}"
        parts.append(f"{len(metric['per_seed'])} seeds of {metric['num_samples']}")
    if metric.get("floor") is not None:
        times = f" ({metric['times_floor']:.2f} times the floor)" if metric.get("times_floor") is not None else ""
        parts.append(f"floor {metric['floor']:.4g}{times}")
    for name in ("ceiling", "standard_error", "value_at_infinity", "std_over_splits", "held_out_accuracy"):
        if metric.get(name) is not None:
            parts.append(f"{name.replace('_', ' ')} {metric[name]:.3g}")
    count = len(metric.get("warnings", ()))
    return metric["metric"], value, ", ".join(parts) + (f"  [{count} warning{'s' * (count > 1)}]" if count else "")
