"""Audit the data, fit the codec and fill the cache. redi.train does this first if necessary.

python -m redi.prepare --gin_file=digits.gin
torchrun --nproc_per_node=8 -m redi.prepare --gin_file=imagenet.gin      eight processes share the work; srun works too
In Python: redi.prepare_data.
"""

import logging
from pathlib import Path

from redi import command_line

log = logging.getLogger("redi")


def main(run_dir: Path) -> None:
    """Prepare everything that training reads."""
    from redi.runs.prepare import prepare_run

    prepare_run(command_line.configure(command_line.trained_dir(run_dir), trains=True))
    log.info("data and codec are ready; train with the same flags: python -m redi.train ...")


console = command_line.program(main, dry_run=True)
