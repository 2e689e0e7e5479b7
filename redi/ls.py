"""List the runs in a folder: status, steps, main metric, size, time of the last change.

python -m redi.ls runs
"""

from pathlib import Path

from redi import command_line


def main(folder: Path) -> None:
    """Print one line for each run."""
    from redi.runs.listing import columns, list_runs

    print(columns([("run", "status", "step", "metric", "MiB", "last change"), *list_runs(folder)]))


console = command_line.program(main, default_folder="runs")
