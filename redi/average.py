"""Makes averages of other lengths of a run's weights after training, each a run folder that the programs open.

python -m redi.average --run_dir=runs/mine --sigma_rel=0.03,0.08,0.15
python -m redi.sample --run_dir=runs/mine/averages/sigma_rel_0.08_step_00400000

The run was trained with train.ema = @ema.PowerFunctionEMA (docs/ema.md). With --trained_dir it is that folder's
weights, and the one average is written to --run_dir.
In Python: redi.average_weights.
"""

from pathlib import Path

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
flags.DEFINE_list("sigma_rel", [], "Lengths of the averages, as parts of the training, between 0 and 0.2887.")
flags.DEFINE_integer("at_step", None, "After how many steps; a snapshot's. Default: the newest.")


def main(run_dir: Path) -> None:
    from redi.runs.average import average

    if not FLAGS.sigma_rel:
        raise ValueError("name the lengths of the averages, as --sigma_rel=0.05,0.1")
    try:
        lengths = [float(text) for text in FLAGS.sigma_rel]
    except ValueError:
        raise ValueError(f"--sigma_rel={','.join(FLAGS.sigma_rel)}: numbers with commas between them") from None
    trained = command_line.trained_dir(run_dir)
    if trained != run_dir and len(lengths) > 1:
        raise ValueError("--trained_dir writes one average, to --run_dir: give one length, or leave --trained_dir away")
    for sigma_rel in lengths:
        average(trained, sigma_rel, at_step=FLAGS.at_step, to=None if trained == run_dir else run_dir)


console = command_line.program(main)
