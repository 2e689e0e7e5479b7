"""One point of a sweep, in this process: train unless another did, sample, evaluate, report; the result last."""

import re
import traceback
from pathlib import Path

import redi
from redi.core import config
from redi.runs.experiment import Experiment
from redi.runs.job import job
from redi.runtime.artefact import write_json
from redi.runtime.checksums import sealed
from redi.runtime.distributed import process_rank
from redi.sweeps.plan import Planned

KEPT = ("metric", "value", "spread", "better", "num_samples")  # of an entry of metrics.json


def run_point(run_dir: Path, entry: Planned) -> None:
    """Does what is left to do of a point; where it fails, `error.txt` in its folder says why."""
    folder = entry.folder(run_dir)
    first = process_rank()[0] == 0
    folder.mkdir(parents=True, exist_ok=True)
    with _error_file(folder):
        config.parse([], [entry.text])
        if first:
            (folder / "config.gin").write_text(entry.text)
        seconds = job(Experiment(folder, entry.trained_dir(run_dir)), shared=True)
        if first:
            write_result(folder, entry, seconds)


def write_result(folder: Path, entry: Planned, seconds: dict[str, float]) -> None:
    """Writes `result.json`, by which the point counts as done."""
    from redi.evaluation.records import read_metrics

    metrics = read_metrics(folder / "metrics.json")
    result = {"name": entry.name, "group": entry.group, "bindings": entry.bindings, "model": entry.model}
    result |= {"status": "done", "metrics": [{key: m[key] for key in KEPT if key in m} for m in metrics]}
    result |= {"seconds": {stage: seconds.get(stage) for stage in ("train", "sample", "evaluate")}}
    write_json(folder / "result.json", sealed(result | {"versions": {"redi": redi.__version__}}))


class _error_file:
    """Context that writes the error that ends it to `error.txt`; the error goes on."""

    def __init__(self, folder: Path):
        self.path = folder / "error.txt"

    def __enter__(self) -> None:
        self.path.unlink(missing_ok=True)

    def __exit__(self, kind, error, trace) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
            # gin adds a line for every call that the error went through.
            text = re.sub(r"\n\s*In call to configurable '\S+' \(<.*?>\)(?=\n|$)", "", str(error))
            self.path.write_text(f"{text}\n\n{''.join(traceback.format_exception(kind, error, trace))}")
