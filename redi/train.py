"""Train a model, or resume training from the newest checkpoint.

python -m redi.train --gin_file=digits.gin --gin_bindings='PCA.rank = 4' --run_dir=runs/rank4

Rerun the same command to resume. In Python: redi.train_model.
"""

from pathlib import Path

from redi import command_line


def main(run_dir: Path) -> None:
    """Train or resume, then write operative.gin."""
    from redi.core import config
    from redi.runs.stages import train_stage

    run_dir = command_line.trained_dir(run_dir)
    train_stage(command_line.configure(run_dir, trains=True))
    (run_dir / "operative.gin").write_text(config.operative_text())


console = command_line.program(main, dry_run=True)
