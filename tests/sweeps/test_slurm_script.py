"""What experiments/slurm/train.sbatch does about every end of srun, with stand-ins for srun and scontrol.

The script itself was run by a real Slurm (docs/launch.md); this holds its decisions where there is none.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "slurm" / "train.sbatch"
bash = pytest.mark.skipif(shutil.which("bash") is None, reason="the script is for bash")


def run(
    folder: Path, statuses: list[int], *, preempted: str = "None", warned: bool = False, **environment: str
) -> tuple[int, list[str]]:
    """Runs the script with an srun that ends with these statuses, one a call -> its own, and what was called."""
    (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    stand_ins = {
        "srun": f'echo "srun $* $MASTER_ADDR $MASTER_PORT $OMP_NUM_THREADS" >> {folder}/calls\n'
        + ("kill -USR1 $PPID; sleep 0.3\n" if warned else "")
        + f"status=$(head -n 1 {folder}/statuses); sed -i 1d {folder}/statuses; exit $status",
        "scontrol": f'echo "scontrol $*" >> {folder}/calls\n'
        f'case $1 in show) [ "$2" = job ] && echo "PreemptTime={preempted}" || printf "node3\\nnode4\\n" ;; esac',
    }
    stand_ins["scancel"] = f'echo "scancel $*" >> {folder}/calls'
    for name, body in stand_ins.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "12017", "SLURM_JOB_NODELIST": "node[3-4]",
        "SLURM_CPUS_PER_TASK": "6",
    } | environment  # fmt: skip
    words = ["bash", str(SCRIPT), "--gin_file=my.gin", "--gin_bindings=a.b = 'two words'"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, (folder / "calls").read_text().splitlines()


def kinds(calls: list[str]) -> list[str]:
    return [" ".join(call.split()[:2]) if call.startswith("scontrol") else call.split()[0] for call in calls]


@bash
def test_every_process_is_told_where_all_meet_and_gets_the_flags(tmp_path):
    status, calls = run(tmp_path, [0])
    assert status == 0
    assert calls[0] == "scontrol show hostnames node[3-4]"
    flags = "-m redi.train --gin_file=my.gin --gin_bindings=a.b = 'two words'"
    assert calls[1:] == [f"srun --kill-on-bad-exit=1 .venv/bin/python {flags} node3 20017 6"]


@bash
@pytest.mark.parametrize("status", [140, 143, 137])  # 143: srun may end the last process while it is leaving
def test_a_warning_reaches_the_processes_and_queues_the_job_again(tmp_path, status):
    got, calls = run(tmp_path, [status], warned=True)
    assert got == status and "scancel --signal=USR2 12017" in calls and calls[-1] == "scontrol requeue 12017"


@bash
def test_what_finishes_in_spite_of_a_warning_is_not_queued_again(tmp_path):
    got, calls = run(tmp_path, [0], warned=True)
    assert got == 0 and "scontrol requeue" not in kinds(calls)


@bash
@pytest.mark.parametrize("status", [138, 140])
def test_processes_that_were_warned_by_others_queue_the_job_again(tmp_path, status):
    got, calls = run(tmp_path, [status])
    assert got == status and calls[-1] == "scontrol requeue 12017"


@bash
def test_pre_emption_queues_the_job_again(tmp_path):
    got, calls = run(tmp_path, [143], preempted="2026-11-26T01:05:25")
    assert got == 143 and calls[-1] == "scontrol requeue 12017"


@bash
@pytest.mark.parametrize("status", [134, 135, 137, 139, 143])
def test_a_lost_process_starts_all_again_and_not_for_ever(tmp_path, status):
    got, calls = run(tmp_path, [status, 0])
    assert got == 0 and kinds(calls).count("srun") == 2 and "scontrol requeue" not in kinds(calls)
    got, calls = run(tmp_path, [status] * 9, MAX_RESTARTS="2")
    assert got == status and kinds(calls).count("srun") == 2 + 3


@bash
@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_what_is_finished_or_explained_is_not_done_again(tmp_path, status):
    got, calls = run(tmp_path, [status])
    assert got == status and "scontrol requeue" not in kinds(calls) and kinds(calls).count("srun") == 1
