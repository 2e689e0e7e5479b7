"""Profile a configuration: a trace, the ten most expensive operations, FLOPs and utilisation.

python -m redi.profile --gin_file=digits.gin                    training steps, data loading included
python -m redi.profile --run_dir=runs/digits --stage=sampling   one sampled batch

Writes only profile/ in --run_dir: trace.json.gz (open it in ui.perfetto.dev), report.md and report.json.
The model has random weights, which cost the same as trained ones. Bindings may differ from those of an existing run.
"""

import os
from pathlib import Path

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS

# A CUDA build of torch without a GPU logs an error from the profiler. The level is read when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")
# Without this, a graph that is compiled for the CPU appears as a single operation.
os.environ.setdefault("TORCHINDUCTOR_CPP_ENABLE_KERNEL_PROFILE", "1")

flags.DEFINE_enum("stage", "training", ["training", "sampling"], "What to profile.")


def main(run_dir: Path) -> None:
    """Profile --stage and print the report."""
    from redi.core import config
    from redi.runs.profile import format_report, profile

    command_line.parse(run_dir)
    print(format_report(config.call(profile, run_dir=run_dir, stage=FLAGS.stage)), end="", flush=True)


console = command_line.program(main)
