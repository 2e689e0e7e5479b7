"""Trains a model; run again with the same flags, it resumes.

python -m redi.train --gin_file=digits.gin --gin_bindings='PCA.rank = 4' --run_dir=runs/rank4
"""

from pathlib import Path

from redi import command_line
from redi.prepare import prepared


def stage(run_dir: Path, *, evaluates: bool = False) -> None:
    """Prepares and trains under the parsed configuration; see `prepared`."""
    from redi.core import config
    from redi.training.trainer import train

    monitor = config.bound("train.monitor")
    codec, dataset = prepared(run_dir, evaluates=evaluates, monitor=monitor)
    config.call(train, run_dir=run_dir, codec=codec, dataset=dataset, monitor=monitor)


def main(run_dir: Path) -> None:
    run_dir = command_line.trained_dir(run_dir)
    command_line.configure(run_dir, trains=True)
    stage(run_dir)
    from redi.core import config

    (run_dir / "operative.gin").write_text(config.operative_text())


def console() -> None:
    command_line.run(main, __doc__)


if __name__ == "__main__":
    console()
