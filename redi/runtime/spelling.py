"""Names in messages: suggest the nearest valid name, and shorten long lists."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names) -> str:
    """Return '; did you mean X?' with the nearest of `names`, or '' if none is close."""
    by_lower = {valid.lower(): valid for valid in names}
    nearest = difflib.get_close_matches(name[:100].lower(), by_lower, n=1)  # quadratic in the length
    return f"; did you mean {by_lower[nearest[0]]!r}?" if nearest else ""


def few(names: Iterable[str], most: int = 3) -> str:
    """Join the first `most` names, with '...' if there are more: 'a, b, c, ...'."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
