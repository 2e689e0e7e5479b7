"""Format numbers, records and gin values for the pages."""

import ast
import re
import sys
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def number(value: object, digits: int = 4) -> str:
    """Format a number with thousands separators and `digits` significant digits; return other values as text."""
    if not is_number(value):
        return "–" if value is None else str(value) or "–"
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e15 else f"{value:.{digits}g}"


def with_spread(value: object, spread: object = None) -> str:
    """Format a value with its standard deviation, if there is one."""
    return number(value) + (f" ± {number(spread, digits=2)}" if value is not None and is_number(spread) else "")


def phrase(value: object) -> str:
    """Format part of a record as one line: {"name": "Euler", "num_evaluations": 50} -> Euler (num_evaluations 50)."""
    if isinstance(value, dict):
        rest = ", ".join(f"{key} {phrase(part)}" for key, part in value.items() if key != "name")
        if "name" not in value:
            return rest or "none"
        return f"{value['name']} ({rest})" if rest else str(value["name"])
    if isinstance(value, list):
        if value and all(isinstance(row, list) for row in value):
            return f"{len(value)} rows, see the full record"
        return ", ".join(map(phrase, value)) or "none"
    return number(value, digits=6) if isinstance(value, float) else str(value)


def as_list(value: object) -> list:
    """Return a list unchanged, [] for an empty value, and [value] otherwise."""
    return value if isinstance(value, list) else [value] * bool(value)


def gin_number(value: str | None) -> float | None:
    """Parse a gin value as a number; None if it is not one."""
    try:
        number = ast.literal_eval(value.strip()) if value else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return number if is_number(number) else None


def gin_words(value: str | None) -> str:
    """Simplify a gin value for readers: @reducers.PCA() -> PCA, 'raw' -> raw."""
    text = re.sub(r"@((?:\w+/)*)(?:\w+\.)*(\w+)(?:\(\))?", r"\1\2", (value or "").strip())
    quoted = re.fullmatch(r"(['\"])([^'\"]*)\1", text)
    return quoted.group(2) if quoted else text
