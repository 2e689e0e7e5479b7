"""A point of a sweep as submitit pickles it; imports nothing heavy, for the job's own process does no work."""

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
    """Runs a command; a job that is preempted or out of time is queued again, and the command resumes its work.

    Args:
        words: the command.
        threads: of each of its processes, or None.
        patience_seconds: how long the command may take for its checkpoint before the job is queued again without it:
            less than lies between the scheduler's warning and the end.
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
            sys.exit(status)  # without a result, which for submitit would be the job's end
        return status

    def checkpoint(self):
        """For submitit's signal handler: stop the command -> what is to be queued again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            # Slurm signals every process of the step, but submitit's local executor and a lone kill do not.
            self._process.send_signal(getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")))
            _await_end(self._process.pid, self.patience_seconds)
        return DelayedSubmission(Task(self.words, self.threads, self.patience_seconds))


def _preempted(job: str) -> bool:
    """Whether Slurm itself took the job away, by a SIGTERM. submitit does nothing about that, and Slurm does not queue
    a job again that ends within its time of grace.
    """
    if shutil.which("scontrol") is None:  # in a container, say
        return False
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False)
    return re.search(r"PreemptTime=\d", shown.stdout) is not None


def _await_end(pid: int, seconds: float) -> None:
    """Waits for a child and leaves it to `Popen.wait`, which this may have interrupted while it held Popen's lock."""
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        try:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
        except ChildProcessError:  # already waited for
            return
        time.sleep(POLL_SECONDS)
