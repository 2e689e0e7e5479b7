"""Measures a run's samples against held-out images; writes metrics.json.

python -m redi.evaluate --run_dir=runs/digits
"""

from pathlib import Path

from redi import program
from redi.prepare import audited


def stage(run_dir: Path) -> None:
    """Evaluates under the parsed configuration."""
    from redi.core import config
    from redi.evaluation.evaluate import describe, evaluate

    (run_dir / "stages.json").unlink(missing_ok=True)  # as in redi.sample
    print(describe(config.call(evaluate, run_dir=run_dir, dataset=audited(run_dir))), flush=True)


def main(run_dir: Path) -> None:
    program.configure(run_dir, trains=False)
    stage(run_dir)


def console() -> None:
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
