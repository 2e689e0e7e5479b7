"""Many runs from one sweep file, a gin file that also binds `sweep`; run again, it does what is left.

python -m redi.sweep --gin_file=sweeps/digits_rank.gin --gin_bindings='sweep.parallel = 2'
python -m redi.sweep --run_dir=runs/digits_rank --point=rank=8,seed=0      one point, in this process

WHAT IS SWEPT: keys are those of bindings, macros too; values are gin values, components too.
    sweep.grid = {'PCA.rank': [4, 8], 'train.seed': [0, 1, 2]}    every combination; seeds are averaged over
    sweep.points = [{'A.x': 1, 'B.y': 2}, {'A.x': 3}]    values that go together; each with the whole grid
    sweep.names = ['one', 'other']    names of the entries of sweep.points

HOW IT RUNS
    sweep.launcher    'local', 'torchrun', 'slurm' (by submitit), or 'print': the commands for another scheduler
    sweep.parallel    so many points at once, on this machine
    sweep.threads    of each process; sweep.processes    of each point, by torchrun
    sweep.slurm = {'timeout_min': 600, 'gpus_per_node': 1, 'slurm_partition': 'gpu'}    options of submitit
"""

from pathlib import Path

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
flags.DEFINE_string("point", None, "Run this point alone, in this process.")


def main(run_dir: Path) -> None:
    from redi.core import config
    from redi.core.configurables import import_all
    from redi.sweeps.plan import plan
    from redi.sweeps.sweep import sweep

    if FLAGS.trained_dir:
        raise ValueError("--trained_dir is not for sweeps: they keep what they train in models/ of --run_dir")
    import_all()
    saved = run_dir / "config.gin"
    if not FLAGS.gin_file and not saved.exists():
        raise ValueError(f"{run_dir} holds no sweep: name a sweep file with --gin_file")
    command_line.name_plugins()
    config.parse(FLAGS.gin_file, FLAGS.gin_bindings, found=[] if FLAGS.gin_file else [saved])
    if not FLAGS.gin_file and FLAGS.point is None and config.unevaluated("sweep.slurm"):
        raise ValueError(
            f"{saved} binds sweep.slurm, and options of Slurm can be shell commands: read it, and if you trust it, "
            f"name it: --gin_file={saved}"
        )
    # As they stand in the file: the components among them are built point by point.
    asked = {name: config.unevaluated(f"sweep.{name}") for name in ("grid", "points", "names")}
    texts = {"text": config.full_text(), "base": config.text_without(sweep)}
    if FLAGS.dry_run:
        for entry in plan(run_dir, texts["base"], **asked):
            print(f"{entry.name}  (model {entry.model}, {entry.num_steps:,} steps)")
        return
    config.call(sweep, run_dir=run_dir, only=FLAGS.point, **texts, **asked)


console = command_line.program(main, dry_run=True)
