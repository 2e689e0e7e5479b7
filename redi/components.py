"""List everything that gin can configure, or explain one component and its arguments.

python -m redi.components                             all components of the library
python -m redi.components train                       one function, component or kind, with all its arguments
python -m redi.components --gin_file=my_lab.gin       also the components in modules that the file imports
"""

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
flags.DEFINE_string("component", None, "What to explain, such as PCA, reducers or train; '--component=' is optional.")


def main() -> None:
    """Print the table of components, or the page of the one in --component."""
    from redi.core import config
    from redi.core.configurables import import_all
    from redi.core.listing import page, table

    import_all()
    config.parse(FLAGS.gin_file, FLAGS.gin_bindings)
    print(page(FLAGS.component) if FLAGS.component else table())


console = command_line.program(main, positional="component")  # `redi.components PCA` is short for --component=PCA
