"""Progress bars that behave in a terminal and in a log file."""

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar

from tqdm import tqdm

_whole: ContextVar[tqdm | None] = ContextVar("whole", default=None)


def progress(*args, **options) -> tqdm:
    """A tqdm bar on stderr; in a log file a line every ten seconds, the first one after ten."""
    if (whole := _whole.get()) is not None:
        part = tqdm(*args, **options | {"disable": True})
        part.update = whole.update
        return part
    pace = {} if sys.stderr.isatty() else {"mininterval": 10, "delay": 10}
    return tqdm(*args, **{"leave": False} | pace | options)


@contextlib.contextmanager
def part_of(whole: tqdm) -> Iterator[None]:
    """Context in which further bars are not shown: what they are updated by counts for this one."""
    token = _whole.set(whole)
    try:
        yield
    finally:
        _whole.reset(token)
