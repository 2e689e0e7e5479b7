"""A point of a sweep as submitit pickles it; imports nothing heavy, for the job's own process does no work."""

import os
import subprocess
from collections.abc import Sequence


class Task:
    """Runs a command; a job that is preempted or out of time is queued again, and the command resumes its work."""

    def __init__(self, words: Sequence[str], threads: int | None):
        self.words = list(words)
        self.threads = threads

    def __call__(self) -> int:
        environment = os.environ | ({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {})
        return subprocess.run(self.words, env=environment, check=False).returncode

    def checkpoint(self):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
