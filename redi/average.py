"""Reconstruct EMA weights of other lengths after training (post-hoc EMA).

python -m redi.average --run_dir=runs/mine --sigma_rel=0.03,0.08,0.15
python -m redi.sample --run_dir=runs/mine/averages/sigma_rel_0.08_step_00400000

The run must have been trained with train.ema = @ema.PowerFunctionEMA (docs/ema.md). Each average is written as a run
folder that the other programs open. With --trained_dir, the weights are read from that folder and one average is
written to --run_dir.
In Python: redi.average_weights.
"""

from pathlib import Path

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
flags.DEFINE_list("sigma_rel", [], "Relative lengths of the averages, between 0 and 0.2887, separated by commas.")
flags.DEFINE_integer("at_step", None, "Training step of the averages, one with a snapshot; default: the newest.")


def main(run_dir: Path) -> None:
    """Write one run folder for each length in --sigma_rel."""
    from redi.runs.average import average

    if not FLAGS.sigma_rel:
        raise ValueError("--sigma_rel is missing: pass the lengths of the averages, for example --sigma_rel=0.05,0.1")
    try:
        lengths = [float(text) for text in FLAGS.sigma_rel]
    except ValueError:
        raise ValueError(f"--sigma_rel={','.join(FLAGS.sigma_rel)}: pass numbers separated by commas") from None
    trained = command_line.trained_dir(run_dir)
    if trained != run_dir and len(lengths) > 1:
        raise ValueError("--trained_dir allows one average, which goes to --run_dir: pass one length, or drop the flag")
    for sigma_rel in lengths:
        average(trained, sigma_rel, at_step=FLAGS.at_step, to=None if trained == run_dir else run_dir)


console = command_line.program(main)
