"""The whole job: prepare, train, sample, evaluate, report; what is done and still holds is not done again.

python -m redi.run --gin_file=digits.gin
"""

import hashlib
import inspect
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from redi import command_line, evaluate, report, sample, train

log = logging.getLogger("redi")


def main(run_dir: Path) -> None:
    command_line.configure(run_dir, trains=True)
    job(run_dir, command_line.trained_dir(run_dir))


def job(run_dir: Path, trained_dir: Path, *, shared: bool = False) -> dict[str, float]:
    """Trains in `trained_dir`, then samples, evaluates and reports in `run_dir`, under the parsed configuration.

    Args:
        shared: others may want the same model at the same time: one of them trains it, the others wait.

    Returns:
        The seconds of each stage that was done here.
    """
    from redi.core import config
    from redi.runtime.artefact import write_json
    from redi.runtime.checksums import sha256
    from redi.runtime.distributed import process_rank

    seconds: dict[str, float] = {}
    log.info("--- train")
    if shared:
        _train_with_others(trained_dir, seconds)
    else:
        with _timed(seconds, "train"):
            train.stage(trained_dir, evaluates=True)
    done, key = run_dir / "stages.json", _key(trained_dir)
    pictures = ["samples.png"] if "images" in config.bound("sample.keep", ("images",)) else []
    results = ("samples/record.json", *pictures, "metrics.json", "operative.gin")
    if _holds(done, key, results):
        log.info("--- samples and metrics are of this checkpoint and configuration")
    else:
        log.info("--- sample")
        with _timed(seconds, "sample"):
            sample.stage(run_dir, trained_dir)
        log.info("--- evaluate")
        with _timed(seconds, "evaluate"):
            evaluate.stage(run_dir, trained_dir)
        if process_rank()[0] > 0:
            return seconds
        (run_dir / "operative.gin").write_text(config.operative_text())
        write_json(done, key | {"files": {name: sha256(run_dir / name) for name in results}})
    if process_rank()[0] == 0:
        log.info("--- report")
        report.stage(run_dir)
    return seconds


def _holds(done: Path, key: dict, results: Sequence[str]) -> bool:
    """Whether `stages.json` says that the results are of this checkpoint and configuration, and nothing was damaged."""
    from redi.evaluation.samples.stored import Samples
    from redi.runtime.checksums import BrokenArtefact, sha256

    try:
        stored = json.loads(done.read_text())
        hashes = stored.pop("files", {})
        if stored != key:
            return False
        Samples(done.parent / "samples").verify()
        damaged = [name for name in results if sha256(done.parent / name) != hashes.get(name)]
    except FileNotFoundError:
        return False
    except (BrokenArtefact, ValueError, AttributeError) as error:
        damaged = [str(error)]
    if damaged:
        log.warning("sampled and evaluated again, for it is not as it was written: %s", ", ".join(damaged))
    return not damaged


def _train_with_others(trained_dir: Path, seconds: dict[str, float]) -> None:
    """Has one of all processes that ask for this model train it."""
    from redi.core import config
    from redi.runtime.atomic import write_text
    from redi.runtime.shared_work import complete

    def train_it() -> None:
        write_text(trained_dir / "config.gin", config.full_text())  # others may be reading it
        with _timed(seconds, "train"):
            train.stage(trained_dir, evaluates=True)

    complete(trained_dir / ".training", (), finished=lambda: is_trained(trained_dir), finish=train_it)


def is_trained(trained_dir: Path) -> bool:
    """Whether the folder holds the last checkpoint that the parsed configuration asks for, as it was written.

    Raises:
        ValueError: it holds a later one.
    """
    from redi.runtime.checkpoint import checkpoint_dir, is_good, list_checkpoints

    last, found = checkpoint_dir(trained_dir, num_steps()), list_checkpoints(trained_dir)
    if found and found[-1].name > last.name:
        raise ValueError(f"{found[-1]} is beyond train.num_steps = {num_steps()}: raise it or delete {trained_dir}")
    return last in found and is_good(last)


def num_steps() -> int:
    """How long the parsed configuration trains."""
    from redi.core import config
    from redi.training.trainer import train as function

    return config.bound("train.num_steps", inspect.signature(function).parameters["num_steps"].default)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - start, 1)


def _key(trained_dir: Path) -> dict:
    """What samples and metrics depend on: the checkpoint, and all bindings that are in use."""
    from redi.core import config
    from redi.core.registry import entry_points
    from redi.runtime.checkpoint import list_checkpoints

    text = json.dumps(config.relevant(config.full_text(), entry_points), sort_keys=True)
    checkpoint = list_checkpoints(trained_dir)[-1].name
    return {"checkpoint": checkpoint, "configuration_sha256": hashlib.sha256(text.encode()).hexdigest()}


def console() -> None:
    command_line.run(main, __doc__)


if __name__ == "__main__":
    console()
