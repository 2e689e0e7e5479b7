"""Asks a trained joint model for features given images and for images given features; writes queries.png and .json.

python -m redi.query --run_dir=runs/digits
In Python: redi.query_model.
"""

from pathlib import Path

from redi import command_line


def main(run_dir: Path) -> None:
    from redi.runs.stages import query_stage

    query_stage(command_line.configure(run_dir, trains=False))


console = command_line.program(main)
