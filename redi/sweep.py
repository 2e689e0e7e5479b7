"""Many runs from one sweep file, a gin file that also binds `sweep`; run again, it does what is left.

python -m redi.sweep --gin_file=sweeps/digits_rank.gin --gin_bindings='sweep.parallel = 2'
python -m redi.sweep --run_dir=runs/digits_rank --point=rank=8,seed=0      one point, in this process
"""

import sys
from pathlib import Path

from absl import flags

from redi import program

FLAGS = flags.FLAGS
flags.DEFINE_string("point", None, "Run this point alone, in this process.")


def main(run_dir: Path) -> None:
    from redi import components
    from redi.core import config
    from redi.sweeps.sweep import sweep

    if FLAGS.trained_dir:
        raise ValueError("--trained_dir is not for sweeps: they keep what they train in models/ of --run_dir")
    components.import_all()
    saved = run_dir / "config.gin"
    if not FLAGS.gin_file and not saved.exists():
        raise ValueError(f"{run_dir} holds no sweep: name a sweep file with --gin_file")
    config.parse(FLAGS.gin_file or [saved], FLAGS.gin_bindings)
    # As they stand in the file: the components among them are built point by point.
    asked = {name: config.unevaluated(f"sweep.{name}") for name in ("grid", "points", "names")}
    texts = {"text": config.full_text(), "base": config.text_without(sweep)}
    config.call(sweep, run_dir=run_dir, only=FLAGS.point, **texts, **asked)


def console() -> None:
    FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS["point"])
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
