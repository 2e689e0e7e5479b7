"""Show the bindings in which two runs differ.

python -m redi.diff runs/rank4 runs/rank8
"""

from pathlib import Path

from redi import command_line


def main(first: Path, second: Path | None = None) -> None:
    """Print a table of the bindings that differ."""
    from redi.runs.listing import columns, differences

    if second is None:
        raise ValueError("redi.diff needs two run folders: redi.diff runs/one runs/other")
    rows = list(differences(first, second))
    print(columns([("binding", str(first), str(second)), *rows]) if rows else "the configurations are equal")


console = command_line.program(main)
