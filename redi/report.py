"""Write report.html, one self-contained page about a run or a sweep.

python -m redi.report runs/digits
python -m redi.report sweeps/pca_rank
In Python: redi.write_report.
"""

import logging
from pathlib import Path

from redi import command_line

log = logging.getLogger("redi")


def main(run_dir: Path) -> None:
    """Write the page of a run, a sweep, or a point of a sweep."""
    from redi.pages.report import is_point, is_sweep, report
    from redi.runs.stages import report_stage

    if is_sweep(run_dir) or is_point(run_dir):  # a point has no checkpoints, a sweep has no run configuration
        log.info("wrote %s", report(run_dir))
    else:
        report_stage(command_line.configure(run_dir, trains=False))


console = command_line.program(main)
