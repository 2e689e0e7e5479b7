"""The metrics record: a number never stands without what decided it."""

import json
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

import redi
from redi.core.plug_ins import source_sha256
from redi.data.datasets import Dataset
from redi.models.encoders import Encoder
from redi.runtime.checksums import BrokenArtefact, tensors_sha256, unsealed

# What an entry never lacks.
REQUIRED = (
    "metric", "value", "better", "per_seed", "spread", "num_samples", "num_reference",
    "network", "reference", "samples", "versions",
)  # fmt: skip
# What the values of several sets are averaged for too.
AVERAGED = ("standard_error", "value_at_infinity", "bias", "std_over_splits")


def entry(
    metric: str, sets: Sequence[Mapping], *, better: str, num_samples: int, num_reference: int | None,
    conditions: Mapping, warnings: Sequence[str] = (),
) -> dict:  # fmt: skip
    """One entry of metrics.json.

    Args:
        sets: for every set of samples (one per seed) {"value": ...} and what goes with it: the entry's value is their
            mean, and `spread` their sample standard deviation; of what is not averaged, the first set's stands.
        better: 'lower' or 'higher'.
        num_samples: per seed.
        num_reference: None where it is not known, of stored statistics.
    """
    record = {"metric": metric, **over_seeds([float(one["value"]) for one in sets], better)}
    for name in (name for name in sets[0] if name != "value"):
        record[name] = statistics.fmean(one[name] for one in sets) if name in AVERAGED else sets[0][name]
    if record.get("floor", 0) > 0:
        record["times_floor"] = record["value"] / record["floor"]
    record |= {"num_samples": num_samples, "num_reference": num_reference, **conditions}
    return record | ({"warnings": list(warnings)} if warnings else {})


def over_seeds(values: list[float], better: str) -> dict:
    """A metric's mean over seeds, and what it is the mean of."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"value": statistics.fmean(values), "better": better, "per_seed": values, "spread": spread}


def read_metrics(path: Path) -> list[dict]:
    """What `evaluate` wrote to metrics.json. Raises BrokenArtefact where it is cut short, altered or something else."""
    try:
        entries = json.loads(path.read_text())
    except ValueError as error:
        raise BrokenArtefact(f"{path} cannot be read ({error}): run redi.evaluate again") from None
    if not isinstance(entries, list) or not all(isinstance(one, dict) and "metric" in one for one in entries):
        raise BrokenArtefact(f"{path} cannot be read: it is not a list of metrics")
    for one in entries:
        unsealed(one, path)
    return entries


def conditions(samples: Mapping, network: Mapping | None, reference: Mapping) -> dict:
    """What entries of one network have in common: the records of samples (without their parts and files), network and
    reference, and the software.
    """
    drawn = {name: value for name, value in samples.items() if name not in ("files", "parts")}
    return {"network": network, "reference": dict(reference), "samples": drawn, "versions": software()}


def network_record(network: Encoder, trained_on: Dataset) -> dict:
    """A feature network: what its provenance says, and one hash of its weights."""
    known = network.provenance()
    digest = known.get("weights_sha256") or known.get("sha256") or tensors_sha256(network.state_dict())
    learned = {"trained_on": reference_record(trained_on)} if network.learns_from_data else {}
    source = {"source_sha256": code} if (code := source_sha256(type(network))) else {}
    return known | {"sha256": digest, **learned, **source}


def reference_record(reference) -> dict:
    """A data set, with the part of it that is used, or stored statistics: provenance, and a hash of which images."""
    part = {"split": reference.split, "num_images": len(reference)} if isinstance(reference, Dataset) else {}
    return reference.provenance() | part | {"sha256": reference.fingerprint()}


def software() -> dict[str, str]:
    """Versions of what computes the numbers."""
    packages = {name: version(name) for name in ("numpy", "scipy", "pillow", "timm")}
    return {"redi": redi.__version__, "torch": torch.__version__, "cleanfid": version("clean-fid")} | packages


def describe(metrics: Sequence[Mapping]) -> str:
    """The lines that programs print: name, value with its spread over seeds, and what to read it by."""
    shown = [_row(metric) for metric in metrics]
    names, values = (max((len(row[column]) for row in shown), default=0) for column in (0, 1))
    return "\n".join(f"{name:<{names}}  {value:<{values}}  {beside}".rstrip() for name, value, beside in shown)


def _row(metric: Mapping) -> tuple[str, str, str]:
    value, parts = f"{metric['value']:.4g}", []
    if metric.get("spread") is not None:
        value += f" ± {metric['spread']:.2g}"
        parts.append(f"{len(metric['per_seed'])} seeds of {metric['num_samples']}")
    if metric.get("floor") is not None:
        times = f" ({metric['times_floor']:.2f} times)" if metric.get("times_floor") is not None else ""
        parts.append(f"floor {metric['floor']:.4g}{times}")
    for name in ("ceiling", "standard_error", "value_at_infinity", "std_over_splits", "held_out_accuracy"):
        if metric.get(name) is not None:
            parts.append(f"{name.replace('_', ' ')} {metric[name]:.3g}")
    warned = len(metric.get("warnings", ()))
    return metric["metric"], value, ", ".join(parts) + (f"  [{warned} warning{'s' * (warned > 1)}]" if warned else "")
