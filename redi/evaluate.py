"""Measures a run's samples against held-out images; writes metrics.json.

python -m redi.evaluate --run_dir=runs/digits
"""

import logging
from pathlib import Path

from redi import program
from redi.prepare import audited

log = logging.getLogger("redi")


def stage(run_dir: Path) -> None:
    """Evaluates under the parsed configuration."""
    from redi.core import config
    from redi.core.artefact import write_json
    from redi.evaluation.evaluate import describe, evaluate

    (run_dir / "stages.json").unlink(missing_ok=True)  # as in redi.sample
    if config.bound("evaluate.network") is None and config.bound("evaluate.reference") is None:
        log.warning("nothing is measured: neither evaluate.network nor evaluate.reference is bound (see evaluator.gin)")
        write_json(run_dir / "metrics.json", [])
        return
    print(describe(config.call(evaluate, run_dir=run_dir, dataset=audited(run_dir))), flush=True)


def main(run_dir: Path) -> None:
    program.configure(run_dir, trains=False)
    stage(run_dir)


def console() -> None:
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
