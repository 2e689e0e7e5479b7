"""Prints what can be bound: every component with its arguments, or all about one of them.

python -m redi.components                             the components of the library
python -m redi.components train                       a function, a component or a kind: what its arguments mean
python -m redi.components --gin_file=my_lab.gin       also those of the modules that the file imports
"""

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
flags.DEFINE_string("component", None, "What to show in full, as PCA, reducers or train; also without the flag's name.")


def main() -> None:
    from redi.core import config
    from redi.core.configurables import import_all
    from redi.core.listing import page, table

    import_all()
    config.parse(FLAGS.gin_file, FLAGS.gin_bindings)
    print(page(FLAGS.component) if FLAGS.component else table())


console = command_line.program(main, positional="component")  # `redi.components PCA` is short for --component=PCA
