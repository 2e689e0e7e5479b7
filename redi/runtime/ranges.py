"""Range checks for numbers that a user sets."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

SEED: dict[str, Any] = {"least": 0, "below": 2**64}  # seeds are taken modulo 2**64


def check_number(
    binding: str, value: Any, least: float = 1, *, whole: bool = True, below: float = math.inf, note: str = ""
) -> None:
    """Raise ValueError, naming `binding`, unless `value` is a finite number (`whole`: an integer) in [least, below)."""
    kinds: Any = Integral if whole else Real  # mypy gives their values no order
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < below:
        kind = "an integer" if whole else "a finite number"
        limit = f" and less than {'2**64' if below == 2**64 else below}" if below < math.inf else ""
        hint = f" ({note})" if note else ""
        raise ValueError(f"{binding} = {value!r} must be {kind} of at least {least}{limit}{hint}")


def check_choice(binding: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ValueError, naming `binding`, unless `value` is one of the choices."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{binding} = {value!r}: must be {', '.join(others)} or {last}")
