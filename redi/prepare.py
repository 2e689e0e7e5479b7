"""Audits the data, fits the codec and fills the cache; training does the same where it is missing.

python -m redi.prepare --gin_file=digits.gin
torchrun --nproc_per_node=8 -m redi.prepare --gin_file=imagenet.gin      shared by eight processes; srun does as well
In Python: redi.prepare_data.
"""

import logging
from pathlib import Path

from redi import command_line

log = logging.getLogger("redi")


def main(run_dir: Path) -> None:
    from redi.runs.prepare import prepared

    prepared(command_line.configure(command_line.trained_dir(run_dir), trains=True))
    log.info("prepared; train with the same flags: python -m redi.train ...")


console = command_line.program(main, dry_run=True)
