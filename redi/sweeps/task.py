"""The task of a sweep point that submitit pickles. It imports nothing heavy, because it only starts another process."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

POLL_SECONDS = 0.1


class Task:
    """Run a command in a job. If the job is pre-empted or times out, requeue it; the command then resumes.

    Args:
        words: the command.
        threads: threads of each of its processes, or None.
        patience_seconds: seconds to wait for the command's checkpoint before requeueing. Must be less than the time
            between the scheduler's warning and the end of the job.
    """

    def __init__(self, words: Sequence[str], threads: int | None, patience_seconds: float = 60.0):
        self.words, self.threads, self.patience_seconds = list(words), threads, patience_seconds
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        environment = os.environ | ({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {})
        self._process = subprocess.Popen(self.words, env=environment)
        status = self._process.wait()
        if status and (job := os.environ.get("SLURM_JOB_ID")) and _preempted(job):
            subprocess.run(["scontrol", "requeue", job], check=True)
            sys.exit(status)  # submitit takes a returned result for the end of the job
        return status

    def checkpoint(self):
        """Stop the command and return the task to requeue. Called by submitit's signal handler."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            # Slurm signals every process of the step; submitit's local executor and a plain kill do not.
            self._process.send_signal(getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")))
            _await_end(self._process.pid, self.patience_seconds)
        return DelayedSubmission(Task(self.words, self.threads, self.patience_seconds))


def _preempted(job: str) -> bool:
    """Return whether Slurm pre-empted the job by SIGTERM. submitit ignores it, and Slurm does not requeue the job."""
    if shutil.which("scontrol") is None:  # for example in a container
        return False
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False)
    return re.search(r"PreemptTime=\d", shown.stdout) is not None


def _await_end(pid: int, seconds: float) -> None:
    """Wait for a child process without reaping it, because an interrupted `Popen.wait` may still hold Popen's lock."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
        except ChildProcessError:  # already waited for
            return
        time.sleep(POLL_SECONDS)
