"""Run one point of a sweep in this process: train unless the model exists, sample, evaluate, report."""

import logging
import re
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import redi
from redi.core import config
from redi.evaluation.records import read_metrics
from redi.pages.sweep_results import read_result
from redi.runs.experiment import Experiment
from redi.runs.job import job
from redi.runtime import trusted_imports
from redi.runtime.artefact import write_json
from redi.runtime.checksums import sealed
from redi.runtime.distributed import process_rank
from redi.sampling.networks import are_current
from redi.sweeps.owner import working_on
from redi.sweeps.plan import PlannedPoint

log = logging.getLogger("redi")

KEYS = ("metric", "value", "spread", "better", "num_samples")  # copied from each entry of metrics.json


def is_done(run_dir: Path, entry: PlannedPoint) -> bool:
    """Return whether a point has a result and none of its plug-ins was edited since."""
    if (result := read_result(entry.folder(run_dir))) is None:
        return False
    before = result.get("plug_ins", {})
    if edited := sorted(name for name in before.keys() & entry.plug_ins if before[name] != entry.plug_ins[name]):
        log.warning("%s: sampling and measuring again, because of edited plug-ins: %s", entry.name, ", ".join(edited))
    if changed := not are_current(result.get("networks", {})):
        log.warning("%s: sampling and measuring again, because a network of its guidance has changed", entry.name)
    return not edited and not changed


def run_point(run_dir: Path, entry: PlannedPoint) -> None:
    """Run the missing stages of a point, after any other process that works on it. Errors go to `error.txt`."""
    folder, first = entry.folder(run_dir), process_rank()[0] == 0
    folder.mkdir(parents=True, exist_ok=True)
    with working_on(folder) if first else nullcontext() as waited:
        if waited and is_done(run_dir, entry):
            return
        if first:
            entry.forget_outcome(run_dir)
        try:
            config.parse([], [entry.text])
            if first:
                trusted_imports.write(folder / "config.gin", entry.text)
            seconds = job(Experiment(folder, entry.trained_dir(run_dir)), shared=True)
            if first:
                write_result(folder, entry, seconds)
        except Exception as error:
            # gin adds a line for every configurable on the call stack.
            text = re.sub(r"\n\s*In call to configurable '\S+' \(<.*?>\)(?=\n|$)", "", str(error))
            (folder / "error.txt").write_text(f"{text}\n\n{traceback.format_exc()}")
            raise


def write_result(folder: Path, entry: PlannedPoint, seconds: dict[str, float]) -> None:
    """Write `result.json`, which marks the point as done."""
    metrics = read_metrics(folder / "metrics.json")
    result: dict[str, Any] = {"name": entry.name, "group": entry.group, "bindings": entry.bindings}
    result |= {"model": entry.model, "status": "done"}
    result |= {"metrics": [{key: m[key] for key in KEYS if key in m} for m in metrics]}
    result |= {"seconds": {stage: seconds.get(stage) for stage in ("train", "sample", "evaluate")}}
    networks = [m["samples"]["networks"] for m in metrics if "networks" in m.get("samples", {})]
    result |= {"networks": networks[0]} if networks else {}
    result |= {"plug_ins": entry.plug_ins} if entry.plug_ins else {}
    write_json(folder / "result.json", sealed(result | {"versions": {"redi": redi.__version__}}))
