"""Compare convergence speed: the number of steps a method needs to reach the final distance of a baseline.

python -m redi.convergence --baseline='runs/plain_*' --method='runs/redi_*' --run_dir=runs/convergence

All runs must have been trained with the same monitor settings (monitor.gin). Several runs on one side count as seeds.
Prints the speed-up factor with its spread over seeds; writes convergence.json and convergence.png to --run_dir.
"""

from pathlib import Path

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("baseline", [], "Run folder of the baseline, or a glob pattern; may be repeated.")
flags.DEFINE_multi_string("method", [], "Run folder of the method, or a glob pattern; may be repeated.")
flags.DEFINE_string("metric", None, "Name of a monitored distance; default: the first one that all runs have.")


def main(run_dir: Path) -> None:
    """Print the comparison and write it to `run_dir`."""
    from redi.runs.convergence import compare, run_folders

    baseline, method = run_folders("baseline", FLAGS.baseline), run_folders("method", FLAGS.method)
    print(compare(baseline, method, run_dir, metric=FLAGS.metric), flush=True)


console = command_line.program(main)
