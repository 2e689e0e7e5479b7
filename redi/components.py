"""Prints every registered component with its arguments, defaults and first docstring line.

python -m redi.components                             those of the library
python -m redi.components --gin_file=my_lab.gin       and those of the modules that the file imports
"""

from redi import command_line


def main(_run_dir) -> None:
    from redi.core import config
    from redi.core.configurables import import_all, table

    import_all()
    config.parse(command_line.FLAGS.gin_file, command_line.FLAGS.gin_bindings)
    print(table())


console = command_line.program(main, in_run_dir=False)

if __name__ == "__main__":
    console()
