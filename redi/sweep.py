"""Run a sweep: many runs from one gin file that also binds `sweep`.

python -m redi.sweep --gin_file=sweeps/digits_rank.gin --gin_bindings='sweep.parallel = 2'
python -m redi.sweep --run_dir=runs/digits_rank --point=rank=8,seed=0      one point, in this process

Rerun the same command to finish what is missing.

WHAT IS SWEPT: keys are binding names or macros; values are gin values, components included.
    sweep.grid = {'PCA.rank': [4, 8], 'train.seed': [0, 1, 2]}    every combination; results are averaged over seeds
    sweep.points = [{'A.x': 1, 'B.y': 2}, {'A.x': 3}]    sets of bindings, each combined with the whole grid
    sweep.points = [{}, {'gin_file': 'levers/lead.gin'}]    the bindings of a gin file
    sweep.names = ['one', 'other']    names of the entries of sweep.points
    sweep.baseline = 'one'    compare the other points with this one, seed by seed

HOW IT RUNS
    sweep.launcher    'local', 'torchrun', 'slurm' (through submitit), or 'print' (print the commands, start nothing)
    sweep.parallel    number of points that run at once on this machine
    sweep.threads    threads of each process
    sweep.processes    processes of each point, started by torchrun
    sweep.slurm = {'timeout_min': 600, 'gpus_per_node': 1, 'slurm_partition': 'gpu'}    options of submitit
"""

from pathlib import Path

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
flags.DEFINE_string("point", None, "Run only this point, in this process.")


def main(run_dir: Path) -> None:
    """Run every point that is not already done, or the one in --point."""
    from redi.core import config
    from redi.core.configurables import import_all
    from redi.sweeps.plan import plan
    from redi.sweeps.presets import read_presets
    from redi.sweeps.sweep import sweep

    if FLAGS.trained_dir:
        raise ValueError("--trained_dir does not apply to sweeps, which keep their models in models/ of --run_dir")
    import_all()
    saved = run_dir / "config.gin"
    if not FLAGS.gin_file and not saved.exists():
        raise ValueError(f"{run_dir} holds no sweep: pass a sweep file with --gin_file")
    command_line.name_plugins()
    config.parse(FLAGS.gin_file, FLAGS.gin_bindings, saved=[] if FLAGS.gin_file else [saved])
    if not FLAGS.gin_file and FLAGS.point is None and config.unevaluated("sweep.slurm"):
        raise ValueError(
            f"{saved} binds sweep.slurm, and Slurm options can contain shell commands. Read the file; if you trust it, "
            f"pass --gin_file={saved}"
        )
    if FLAGS.gin_file:  # a saved sweep file holds the bindings themselves
        points = read_presets(config.unevaluated("sweep.points"))
        config.parse(FLAGS.gin_file, [*FLAGS.gin_bindings, f"sweep.points = {points!r}"])
    # Unevaluated: components in these values are built for each point.
    axes = {name: config.unevaluated(f"sweep.{name}") for name in ("grid", "points", "names")}
    texts = {"text": config.full_text(), "base": config.text_without(sweep)}
    if FLAGS.dry_run:
        for entry in plan(run_dir, texts["base"], **axes):
            print(f"{entry.name}  (model {entry.model}, {entry.num_steps:,} steps)")
        return
    config.call(sweep, run_dir=run_dir, only=FLAGS.point, **texts, **axes)


console = command_line.program(main, dry_run=True)
