"""Try a trained model in the browser: its settings, features and trajectories, and queries with images of your own.

python -m redi.explore --run_dir=runs/digits

Serves a page on this machine only, until Ctrl-C. Needs the extra `explore`. Writes nothing.
"""

from pathlib import Path

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
flags.DEFINE_string("host", "127.0.0.1", "Address to serve on; 0.0.0.0 lets the whole network use the model.")
flags.DEFINE_integer("port", 8700, "Port to serve on; 0 chooses a free one.")
flags.DEFINE_string("class", None, "Name or number of the class to show first; default: the first one.")


def main(run_dir: Path) -> None:
    """Open the run and serve its page."""
    from redi.pages.explore_page import build_app, check_extra, listen, serve
    from redi.runs.checks import setting
    from redi.runs.explorer import Explorer
    from redi.sampling.generate import generate

    check_extra()
    with listen(FLAGS.host, FLAGS.port) as listener:
        run = command_line.configure(run_dir, trains=False).run
        settings = {name: setting(generate, name) for name in ("sampler", "guidance", "precision")}
        serve(build_app(Explorer(run, **settings), FLAGS.host, label=FLAGS["class"].value), listener)


console = command_line.program(main)
