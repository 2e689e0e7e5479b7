"""Run the whole job: prepare, train, sample, evaluate, report. Stages that are already done are skipped.

python -m redi.run --gin_file=digits.gin
"""

from pathlib import Path

from redi import command_line


def main(run_dir: Path) -> None:
    """Run every stage that is not already done."""
    from redi.runs.job import job

    job(command_line.configure(run_dir, trains=True))


console = command_line.program(main, dry_run=True)
