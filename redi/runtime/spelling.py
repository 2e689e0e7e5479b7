"""Names in messages: the nearest valid one, and the first of many."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names) -> str:
    """'; did you mean X?' for the nearest of `names`, or nothing."""
    by_lower = {known.lower(): known for known in names}
    nearest = difflib.get_close_matches(name[:100].lower(), by_lower, n=1)  # whose time grows with the square
    return f"; did you mean {by_lower[nearest[0]]!r}?" if nearest else ""


def few(names: Iterable[str], most: int = 3) -> str:
    """The first names, and whether there are more: 'a, b, c, ...'."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
