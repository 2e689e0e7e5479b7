"""Writes report.html, one self-contained page about a run.

python -m redi.report --run_dir=runs/digits
"""

import logging
from pathlib import Path

from redi import program

log = logging.getLogger("redi")


def stage(run_dir: Path) -> None:
    """Reports under the parsed configuration."""
    from redi.core import config
    from redi.evaluation.report import report

    log.info("report: %s", config.call(report, run_dir=run_dir))


def main(run_dir: Path) -> None:
    program.configure(run_dir, trains=False)
    stage(run_dir)


def console() -> None:
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
