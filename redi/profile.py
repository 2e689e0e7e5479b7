"""Shows where the time of your configuration goes: a trace, the ten most expensive operations, FLOPs and utilisation.

python -m redi.profile --gin_file=digits.gin                    steps of training, with the data, as redi.train does
python -m redi.profile --run_dir=runs/digits --stage=sampling   one batch, as redi.sample draws it

Writes profile/ in --run_dir and nothing else there: trace.json.gz (for ui.perfetto.dev), report.md and report.json.
The weights are new ones, which costs the same; bindings that differ from those of the run may be tried.
"""

import os
from pathlib import Path

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS

# Torch's profiler reports an error where there is a CUDA build and no GPU; it reads this when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")
os.environ.setdefault("TORCHINDUCTOR_CPP_ENABLE_KERNEL_PROFILE", "1")  # else a graph compiled for a CPU is one line

flags.DEFINE_enum("stage", "training", ["training", "sampling"], "What is profiled.")


def main(run_dir: Path) -> None:
    from redi.core import config
    from redi.runs.profile import format_report, profile

    command_line.parse(run_dir)
    print(format_report(config.call(profile, run_dir=run_dir, stage=FLAGS.stage)), end="", flush=True)


console = command_line.program(main)
