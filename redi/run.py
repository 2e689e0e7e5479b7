"""The whole job: prepare, train, sample, evaluate, report; stages that are done are not done again.

python -m redi.run --gin_file=digits.gin
"""

import logging
from pathlib import Path

from redi import evaluate, program, report, sample, train

log = logging.getLogger("redi")


def main(run_dir: Path) -> None:
    program.configure(run_dir, trains=True)
    from redi.core import config

    for stage in (train, sample, evaluate, report):
        log.info("--- %s", stage.__name__.removeprefix("redi."))
        stage.stage(run_dir)
        (run_dir / "operative.gin").write_text(config.operative_text())


def console() -> None:
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
