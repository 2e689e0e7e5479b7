"""Run a sweep: plan the points, run them, gather the results."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redi.core.registry import configurable
from redi.pages.report import report
from redi.pages.sweep_results import SweepResults
from redi.runtime import trusted_imports
from redi.runtime.paths import local_path
from redi.runtime.ranges import check_number
from redi.runtime.spelling import did_you_mean
from redi.sweeps import launchers
from redi.sweeps.plan import plan, write_plan
from redi.sweeps.point import is_done, run_point
from redi.sweeps.results import table_markdown, write_results

log = logging.getLogger("redi")

LAUNCHERS = ("local", "torchrun", "slurm", "print")


@configurable(runtime=("run_dir", "text", "base", "only"), entry=True)
def sweep(
    run_dir: str | Path,
    *,
    text: str,
    base: str,
    only: str | None = None,
    grid: Mapping[str, Sequence] | None = None,
    points: Sequence[Mapping[str, Any]] | None = None,
    names: Sequence[str] | None = None,
    baseline: str | None = None,
    launcher: str = "local",
    parallel: int = 1,
    threads: int | None = None,
    processes: int = 1,
    slurm: Mapping[str, Any] | None = None,
) -> None:
    """Run every point that is not done, then write the tables and the plot of all finished points.

    Args:
        text: the whole configuration, written to `config.gin`.
        base: the configuration without the bindings of `sweep`; those of a point are added to it.
        only: name of a single point, run in this process without writing tables.
        grid: {binding: list of values}; every combination is run.
        points: list of {binding: value}; with a grid, every entry is combined with the whole grid.
        names: names of the entries of `points`.
        baseline: a point, by its name without seeds. The tables also state how the others differ from it, seed by seed.
        launcher: 'local' (one process per point), 'torchrun' (several per point), 'slurm' (jobs through submitit) or
            'print' (print the commands for another scheduler and start nothing).
        parallel: number of points that run at once on this machine.
        threads: threads of each process (OMP_NUM_THREADS).
        processes: processes of each point, started by torchrun; not with 'local'.
        slurm: options of submitit, such as {'timeout_min': 600, 'gpus_per_node': 1, 'slurm_partition': 'gpu'}.

    Raises ValueError: the sweep is invalid (before anything starts), or points failed (after all others have finished).
    """
    run_dir = local_path(run_dir)
    check_launcher(launcher, parallel, threads, processes)
    planned = plan(run_dir, base, grid=grid, points=points, names=names)
    if baseline is not None and baseline not in (groups := dict.fromkeys(entry.group for entry in planned)):
        hint = did_you_mean(baseline, groups)
        raise ValueError(f"sweep.baseline = {baseline!r}: must be one of {'; '.join(groups)}{hint}")
    if only is not None:
        by_name = {entry.name: entry for entry in planned}
        if only not in by_name:
            hint, valid = did_you_mean(only, by_name), "; ".join(by_name)
            raise ValueError(f"the sweep has no point {only!r}{hint}: pass --point=<one of {valid}>")
        run_point(run_dir, by_name[only])
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    trusted_imports.write(run_dir / "config.gin", text)  # atomically, because running points read it
    write_plan(run_dir, planned, [key for part in (*(points or ()), grid or {}) for key in part], baseline)
    missing = [entry for entry in planned if not is_done(run_dir, entry)]
    models = len({entry.model for entry in planned})
    log.info("%d points with %d models, %d points done", len(planned), models, len(planned) - len(missing))
    several = processes if launcher == "torchrun" or processes > 1 else None
    if launcher == "print":
        launchers.print_commands([launchers.command(run_dir, entry, processes=several) for entry in missing], threads)
    elif launcher == "slurm":
        from redi.sweeps.slurm import submit

        submit(run_dir, missing, threads=threads, processes=several, options=dict(slurm or {}))
    else:
        launchers.local(run_dir, missing, parallel=parallel, threads=threads, processes=several)
    results = gather_all(run_dir)
    if results.missing and launcher != "print":
        failed, folder = ", ".join(results.missing), run_dir / "points"
        raise ValueError(f"{len(results.missing)} of {len(planned)} points failed: {failed}; see error.txt in {folder}")


def gather_all(run_dir: Path) -> SweepResults:
    """Write the tables, the plot and the page of all finished points."""
    results = SweepResults(run_dir)
    if len(results.missing) < len(results.points):
        write_results(run_dir, results)
        log.info("\n%s", table_markdown(results, run_dir.resolve().name))
        log.info("wrote %s", report(run_dir))
    return results


def check_launcher(launcher: str, parallel: int, threads: int | None, processes: int) -> None:
    """Raise ValueError for invalid settings."""
    if launcher not in LAUNCHERS:
        hint = did_you_mean(launcher, LAUNCHERS)
        raise ValueError(f"sweep.launcher = {launcher!r}: must be one of {', '.join(LAUNCHERS)}{hint}")
    for name, number in (("parallel", parallel), ("threads", threads), ("processes", processes)):
        if number is not None:
            check_number(f"sweep.{name}", number)
    if launcher == "local" and processes > 1:
        raise ValueError(f"sweep.processes = {processes} needs sweep.launcher = 'torchrun': bind it too")
