"""Progress bars that behave in a terminal and in a log file."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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


def in_threads(call: Callable, items: Sequence, num_threads: int, desc: str, unit: str = "img") -> Iterator:
    """What `call` gives for each item, in order, by several threads and with a bar; the items may be millions."""
    with progress(total=len(items), desc=desc, unit=unit) as bar, ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(items), 1024):  # bounded: map() queues all of its input
            for result in pool.map(call, items[start : start + 1024]):
                yield result
                bar.update()


def duration(seconds: float) -> str:
    """12.5 s, 4 min 10 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"
