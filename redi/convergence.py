"""Compares how fast two kinds of runs converge: steps until a method reaches the final distance of a baseline.

python -m redi.convergence --baseline='runs/plain_*' --method='runs/redi_*' --run_dir=runs/convergence

The runs were trained with a monitor (monitor.gin) of equal settings; several of each are seeds. Prints the factor with
its spread over seeds, and writes convergence.json and convergence.png to --run_dir.
"""

from pathlib import Path

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("baseline", [], "Folder of a run, or a pattern of several; may be repeated.")
flags.DEFINE_multi_string("method", [], "The same for the runs that are compared with the baseline.")
flags.DEFINE_string("metric", None, "Name of a monitored distance; default: the first that all runs have.")


def main(run_dir: Path) -> None:
    from redi.runs.convergence import compare, run_folders

    baseline, method = run_folders("baseline", FLAGS.baseline), run_folders("method", FLAGS.method)
    print(compare(baseline, method, run_dir, metric=FLAGS.metric), flush=True)


console = command_line.program(main)
