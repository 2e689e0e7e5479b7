"""The whole job: prepare, train, sample, evaluate, report; what is done and still holds is not done again.

python -m redi.run --gin_file=digits.gin
"""

import hashlib
import json
import logging
from pathlib import Path

from redi import evaluate, program, report, sample, train

log = logging.getLogger("redi")


def main(run_dir: Path) -> None:
    program.configure(run_dir, trains=True)
    from redi.core import config
    from redi.core.artefact import write_json

    log.info("--- train")
    train.stage(run_dir, evaluates=True)
    done, key = run_dir / "stages.json", _key(run_dir)
    results = [run_dir / name for name in ("samples.png", "metrics.json", "operative.gin")]
    if all(path.exists() for path in (done, *results)) and json.loads(done.read_text()) == key:
        log.info("--- samples and metrics are of this checkpoint and configuration")
    else:
        log.info("--- sample")
        sample.stage(run_dir)
        log.info("--- evaluate")
        evaluate.stage(run_dir)
        (run_dir / "operative.gin").write_text(config.operative_text())
        write_json(done, key)
    log.info("--- report")
    report.stage(run_dir)


def _key(run_dir: Path) -> dict:
    """What samples and metrics depend on: the checkpoint, and all bindings that are in use."""
    from redi.components import roots
    from redi.core import config
    from redi.core.checkpoint import list_checkpoints

    text = json.dumps(config.relevant(config.full_text(), roots()), sort_keys=True)
    checkpoint = list_checkpoints(run_dir)[-1].name
    return {"checkpoint": checkpoint, "configuration_sha256": hashlib.sha256(text.encode()).hexdigest()}


def console() -> None:
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
