"""Progress bars for terminals and log files."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # a notebook without ipywidgets: bars are text
    from tqdm.auto import notebook_tqdm, std_tqdm, tqdm

_outer_bar: ContextVar[tqdm | None] = ContextVar("outer_bar", default=None)


def progress(*args, **options) -> tqdm:
    """Return a tqdm bar (a line every ten seconds without a terminal, a widget in notebooks). TQDM_DISABLE hides it."""
    if (outer := _outer_bar.get()) is not None:
        part = tqdm(*args, **options | {"disable": True})
        part.update = outer.update
        return part
    if os.environ.get("TQDM_DISABLE"):  # tqdm itself reads it only when it is imported, and `disable` overrides it
        options["disable"] = True
    pace = {} if sys.stderr.isatty() or notebook_tqdm is not std_tqdm else {"mininterval": 10, "delay": 10}
    return tqdm(*args, **{"leave": False} | pace | options)


@contextlib.contextmanager
def part_of(bar: tqdm) -> Iterator[None]:
    """Context in which bars created by `progress` are hidden and their updates advance `bar`."""
    token = _outer_bar.set(bar)
    try:
        yield
    finally:
        _outer_bar.reset(token)


def in_threads(call: Callable, items: Sequence, num_threads: int, desc: str, unit: str = "img") -> Iterator:
    """Yield `call(item)` for each item in order, computed by several threads and shown in a progress bar."""
    with progress(total=len(items), desc=desc, unit=unit) as bar, ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(items), 1024):  # map() queues all of its input, which may be millions of items
            for result in pool.map(call, items[start : start + 1024]):
                yield result
                bar.update()


def duration(seconds: float) -> str:
    """Format a time as '12.5 s', '4 min 10 s' or '2 h 5 min'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"
