"""Sample a trained joint model conditionally: features given images, and images given features.

python -m redi.query --run_dir=runs/digits

Writes queries.png and queries.json. In Python: redi.query_model.
"""

from pathlib import Path

from redi import command_line


def main(run_dir: Path) -> None:
    """Run both conditional queries."""
    from redi.runs.stages import query_stage

    query_stage(command_line.configure(run_dir, trains=False))


console = command_line.program(main)
