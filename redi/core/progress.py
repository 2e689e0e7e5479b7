"""Progress bars that behave in a terminal and in a log file."""

import sys

from tqdm import tqdm


def progress(*args, leave: bool = False, **options) -> tqdm:
    """A tqdm bar on stderr. In a terminal it is lively; in a log file it writes a line every ten seconds, and
    none at all for what is over before that."""
    if sys.stderr.isatty():
        return tqdm(*args, leave=leave, **options)
    return tqdm(*args, leave=leave, mininterval=10, delay=10, **options)
