"""Lists the runs in a folder: status, steps, main metric, size, and when they last changed.

python -m redi.ls runs
"""

from pathlib import Path

from redi import command_line


def main(folder: Path) -> None:
    from redi.runs.listing import columns, list_runs

    print(columns([("run", "status", "step", "metric", "MiB", "last change"), *list_runs(folder)]))


main.default_folder = "runs"
console = command_line.program(main)
