"""Limits for readers: their memory is measured, and a hanging test is ended."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # the files' makers are shared, and no package


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(60))


def peak_mib() -> float:
    """The peak memory of this process since `reset`."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@pytest.fixture
def bounded() -> Callable:
    """Context that fails if the block uses more than this additional memory."""

    @contextlib.contextmanager
    def within(mib: float) -> Iterator[None]:
        if not Path("/proc/self/clear_refs").exists():
            pytest.skip("peak memory is told by Linux alone")
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what there is now
        before = peak_mib()
        yield
        assert peak_mib() - before < mib

    return within


@pytest.fixture
def refused(tmp_path, bounded) -> Callable:
    """Check that a reader refuses a file with a matching message, runs no code of it, and uses little memory."""

    def check(read: Callable[[Path], object], message: str) -> None:
        with bounded(mib=700), pytest.raises(ValueError, match=message) as refusal:
            read(tmp_path)
        assert not (tmp_path / "ran").exists()  # what code in the files would have made
        assert len(str(refusal.value)) < 2_000

    return check
