"""The nearest valid name, for messages."""

import difflib


def did_you_mean(name: str, names) -> str:
    """'; did you mean X?' for the nearest of `names`, or nothing."""
    by_lower = {known.lower(): known for known in names}
    nearest = difflib.get_close_matches(name[:100].lower(), by_lower, n=1)  # whose time grows with the square
    return f"; did you mean {by_lower[nearest[0]]!r}?" if nearest else ""
