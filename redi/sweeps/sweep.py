"""The sweep as a whole: planned, run, gathered."""

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
    launcher: str = "local",
    parallel: int = 1,
    threads: int | None = None,
    processes: int = 1,
    slurm: Mapping[str, Any] | None = None,
) -> None:
    """Run every point that is not done yet, then write the tables and the plot of all that are.

    Args:
        text: the whole configuration, for `config.gin`.
        base: the same without the sweep's own bindings, which is what the points bind over.
        only: the name of the one point to run, in this process; nothing is gathered then.
        grid: {binding: list of values}: every combination.
        points: list of {binding: value}: values that go together; with a grid, every entry with every combination.
        names: of the entries of `points`, by hand.
        launcher: 'local': one process a point; 'torchrun': several; 'slurm': jobs by submitit; 'print': the commands
            for another scheduler, and nothing is started.
        parallel: number of points at once, locally.
        threads: of each process, OMP_NUM_THREADS.
        processes: of each point, by torchrun; not with 'local'.
        slurm: options of submitit, such as {'timeout_min': 600, 'gpus_per_node': 1, 'slurm_partition': 'gpu'}.

    Raises:
        ValueError: a mistake in the sweep, before anything starts; or points that failed, after the others.
    """
    run_dir = local_path(run_dir)
    check_launcher(launcher, parallel, threads, processes)
    planned = plan(run_dir, base, grid=grid, points=points, names=names)
    if only is not None:
        named = {entry.name: entry for entry in planned}
        if only not in named:
            raise ValueError(f"the sweep has no point {only!r}{did_you_mean(only, named)} (it has {'; '.join(named)})")
        run_point(run_dir, named[only])
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    trusted_imports.write(run_dir / "config.gin", text)  # points that are under way read it
    write_plan(run_dir, planned, [key for part in (*(points or ()), grid or {}) for key in part])
    left = [entry for entry in planned if not is_done(run_dir, entry)]
    models = len({entry.model for entry in planned})
    log.info("%d points of %d models, %d points done", len(planned), models, len(planned) - len(left))
    several = processes if launcher == "torchrun" or processes > 1 else None
    if launcher == "print":
        launchers.printed([launchers.command(run_dir, entry, processes=several) for entry in left], threads)
    elif launcher == "slurm":
        from redi.sweeps.slurm import submitted

        submitted(run_dir, left, threads=threads, processes=several, options=dict(slurm or {}))
    else:
        launchers.local(run_dir, left, parallel=parallel, threads=threads, processes=several)
    results = gather_all(run_dir)
    if results.missing and launcher != "print":
        names, where = ", ".join(results.missing), run_dir / "points"
        raise ValueError(f"{len(results.missing)} of {len(planned)} points failed: {names}; see error.txt in {where}")


def gather_all(run_dir: Path) -> SweepResults:
    """Write the tables, the plot and the page of all points that are done."""
    results = SweepResults(run_dir)
    if len(results.missing) < len(results.points):
        write_results(run_dir, results)
        log.info("\n%s", table_markdown(results, run_dir.resolve().name))
        log.info("report: %s", report(run_dir))
    return results


def check_launcher(launcher: str, parallel: int, threads: int | None, processes: int) -> None:
    """Raise ValueError for settings that cannot work."""
    if launcher not in LAUNCHERS:
        nearest = did_you_mean(launcher, LAUNCHERS)
        raise ValueError(f"sweep.launcher = {launcher!r}: it is one of {', '.join(LAUNCHERS)}{nearest}")
    for name, number in (("parallel", parallel), ("threads", threads), ("processes", processes)):
        if number is not None:
            check_number(f"sweep.{name}", number)
    if launcher == "local" and processes > 1:
        raise ValueError(f"sweep.processes = {processes} without effect: bind sweep.launcher = 'torchrun' as well")
