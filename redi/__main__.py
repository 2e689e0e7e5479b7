"""List the programs.

python -m redi
"""

import importlib
import pkgutil

import redi
from redi import command_line


def main() -> None:
    """Print the name and the first line of the help of every program."""
    for name in sorted(module.name for module in pkgutil.iter_modules(redi.__path__) if not module.ispkg):
        if name != "__main__" and hasattr(program := importlib.import_module(f"redi.{name}"), "console"):
            print(f"redi.{name:<12} {(program.__doc__ or '').partition(chr(10))[0]}")
    print("\nRun one as `python -m redi.train` or `redi-train`; --help shows its flags.")


console = command_line.program(main, usage="write a program's name with a dot, as in `python -m redi.train`")
