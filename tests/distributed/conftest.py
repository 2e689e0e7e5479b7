"""Two or four real processes that communicate over gloo; tests/chaos/test_ranks.py starts them with torchrun."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def started():
    """Run a script of this folder in several processes, which must succeed; return their output."""

    def started(processes: int, script: str, *arguments: str) -> str:
        words = [sys.executable, str(HERE / "launch.py"), str(processes), str(HERE / script), *arguments]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return started
