"""Two or four real processes that communicate over gloo; tests/chaos/test_ranks.py starts them with torchrun."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def started(python):
    """Run a script of this folder in several processes, which must succeed; return their output."""

    def started(processes: int, script: str, *arguments: str) -> str:
        done = python(HERE / "launch.py", processes, HERE / script, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return started
