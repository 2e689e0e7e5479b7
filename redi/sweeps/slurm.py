"""Run the points of a sweep as Slurm jobs, through submitit."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redi.runtime.artefact import write_json
from redi.runtime.interrupt import StopRequest
from redi.sweeps.launchers import command, note_end
from redi.sweeps.plan import PlannedPoint
from redi.sweeps.task import Task

log = logging.getLogger("redi")

MAX_REQUEUES = 1000  # a long run times out many times; submitit's default gives up after three
WARNING_SECONDS = 90  # submitit's default time between the signal and the end of a job


def submit(
    run_dir: Path, entries: Sequence[PlannedPoint], *, threads: int | None, processes: int | None = None,
    options: Mapping[str, Any], cluster: str = "slurm", poll_seconds: float = 5.0,
) -> None:  # fmt: skip
    """Submit one job per point, unless it is queued already, and wait for all of them.

    Args:
        options: arguments of submitit's `update_parameters`.
        cluster: 'slurm', or 'local' for tests.

    Raises:
        ValueError: submitit is missing, or refuses the options.
        KeyboardInterrupt: Ctrl-C was pressed. The jobs stay in the queue.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError("sweep.launcher = 'slurm' needs submitit: pip install 'redi-diffusion[slurm]'") from None

    folder = run_dir.resolve() / "slurm"
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=MAX_REQUEUES)
        executor.update_parameters(name=f"redi-{run_dir.resolve().name}", **options)
    except (RuntimeError, TypeError, NameError) as error:
        raise ValueError(f"submitit refuses the options in sweep.slurm: {error}") from None
    patience = 2 / 3 * options.get("slurm_signal_delay_s", WARNING_SECONDS)
    jobs = {}
    for entry in entries:
        point = entry.folder(run_dir)
        job = _queued(submitit, folder, point) if cluster == "slurm" else None
        if job is None:
            point.mkdir(parents=True, exist_ok=True)
            (point / "error.txt").unlink(missing_ok=True)  # from an earlier attempt
            job = executor.submit(Task(command(run_dir.resolve(), entry, processes=processes), threads, patience))
            write_json(point / "job.json", {"job_id": job.job_id})
            log.info("%s: submitted as job %s", entry.name, job.job_id)
        jobs[entry.name] = entry, job
    _wait(run_dir, jobs, poll_seconds)


def _queued(submitit, folder: Path, point: Path):
    """Return the unfinished job that an earlier call submitted for this point, if any."""
    if not (path := point / "job.json").exists():
        return None
    job = submitit.SlurmJob(folder=folder, job_id=json.loads(path.read_text())["job_id"])
    if job.done():
        return None
    log.info("%s: already queued as job %s", point.name, job.job_id)
    return job


def _wait(run_dir: Path, jobs: dict, poll_seconds: float) -> None:
    with StopRequest("the jobs stay in the queue") as stop:
        while jobs and stop.requested is None:
            for name, (entry, job) in list(jobs.items()):
                if job.done():
                    del jobs[name]
                    note_end(run_dir, entry, job.state)
            time.sleep(poll_seconds if jobs else 0)
    stop.interrupt(f"{len(jobs)} jobs stay in the queue; cancel them with scancel")
