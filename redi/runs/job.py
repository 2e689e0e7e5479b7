"""The whole job: train, sample, evaluate, report. Stages that are already done are skipped."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from redi.core import config
from redi.core.registry import entry_points
from redi.evaluation.samples.stored import Samples
from redi.runs.checks import setting
from redi.runs.experiment import Experiment
from redi.runs.stages import evaluate_stage, report_stage, sample_stage, train_stage
from redi.runtime import trusted_imports
from redi.runtime.artefact import write_json
from redi.runtime.checkpoint import checkpoint_dir, ended_early, is_good, list_checkpoints
from redi.runtime.checksums import json_sha256, sha256
from redi.runtime.distributed import process_rank
from redi.runtime.shared_work import complete
from redi.sampling.networks import are_current
from redi.training.trainer import train

log = logging.getLogger("redi")


def job(experiment: Experiment, *, shared: bool = False) -> dict[str, float]:
    """Train, sample, evaluate and report under the parsed configuration; return the seconds of each stage that ran.

    Args:
        shared: whether other processes may need the same model. One of them trains it, the others wait.
    """
    run_dir = experiment.run_dir
    seconds: dict[str, float] = {}
    log.info("--- train")

    def train_here() -> None:
        if shared:
            trusted_imports.write(experiment.trained_dir / "config.gin", config.full_text())  # others may read it
        with _timed(seconds, "train"):
            train_stage(experiment, evaluates=True)

    if shared:
        folder = experiment.trained_dir
        complete(folder / ".training", finished=lambda: is_trained(folder), finish=train_here)
    else:
        train_here()
    checkpoint, stages = list_checkpoints(experiment.trained_dir)[-1].name, run_dir / "stages.json"
    key = {"checkpoint": checkpoint, "configuration_sha256": json_sha256(config.key(entry_points))}
    pictures = ["samples.png"] if "images" in config.bound("sample.keep", ("images",)) else []
    results = ("samples/record.json", *pictures, "metrics.json", "operative.gin")
    if is_current(stages, key, results):
        log.info("--- samples and metrics are up to date")
    else:
        log.info("--- sample")
        with _timed(seconds, "sample"):
            sample_stage(experiment)
        log.info("--- evaluate")
        with _timed(seconds, "evaluate"):
            evaluate_stage(experiment)
        if process_rank()[0] > 0:
            return seconds
        (run_dir / "operative.gin").write_text(config.operative_text())
        write_json(stages, key | {"files": {name: sha256(run_dir / name) for name in results}})
    if process_rank()[0] == 0:
        log.info("--- report")
        report_stage(experiment)
    return seconds


def is_current(stages: Path, key: dict, results: Sequence[str]) -> bool:
    """Return whether `stages.json` and undamaged result files belong to this checkpoint and configuration."""
    try:
        stored = json.loads(stages.read_text())
        hashes = stored.pop("files", {})
        if stored != key:
            return False
        samples = Samples(stages.parent / "samples")
        samples.verify()
        if not are_current(samples.record.get("networks", {})):
            return False
        damaged = [name for name in results if sha256(stages.parent / name) != hashes.get(name)]
    except FileNotFoundError:
        return False
    except (ValueError, AttributeError) as error:  # also BrokenArtefact
        damaged = [str(error)]
    if damaged:
        log.warning("sampling and evaluating again, because these files were changed: %s", ", ".join(damaged))
    return not damaged


def is_trained(trained_dir: Path) -> bool:
    """Return whether training has finished, perhaps early by `train.on_log`. Raises ValueError: a later checkpoint."""
    num_steps, checkpoints = setting(train, "num_steps"), list_checkpoints(trained_dir)
    last = checkpoint_dir(trained_dir, num_steps)
    if config.is_bound("train.on_log") and ended_early(trained_dir):
        last = checkpoints[-1]
    if checkpoints and checkpoints[-1].name > last.name:
        raise ValueError(f"{checkpoints[-1]} is beyond train.num_steps = {num_steps}: raise it or delete the folder")
    return last in checkpoints and is_good(last)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - start, 1)
