"""One process at a time in a run folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def only_process(run_dir: Path) -> Iterator[None]:
    """Holds `run_dir/.lock`; the system releases it when the process ends, however it ends.

    Raises:
        ValueError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no protection rather than no training
        yield
        return
    with open(run_dir / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is training in {run_dir}: choose another --run_dir") from None
        yield
