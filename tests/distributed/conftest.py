"""Real processes, 2 or 4 of them, which meet over gloo; tests/chaos/test_ranks.py has torchrun start them."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def started():
    """Runs a script of this folder in so many processes -> what they printed; they must succeed."""

    def started(processes: int, script: str, *arguments: str) -> str:
        words = [sys.executable, str(HERE / "launch.py"), str(processes), str(HERE / script), *arguments]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return started
