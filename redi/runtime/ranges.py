"""Numbers that a user sets: in which range each lies."""

import math
from numbers import Integral, Real

SEED = {"least": 0, "below": 2**64}  # beyond 64 bits random streams would begin again


def check_number(
    binding: str, value: object, least: float = 1, *, whole: bool = True, below: float = math.inf, note: str = ""
) -> None:
    """Raise ValueError, which names the `binding`, unless `value` is a finite number (`whole`: a whole one) in
    [least, below). `note`: what another value would mean, as '0 is never'.
    """
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real) or not least <= value < below:
        what = f"{'a whole' if whole else 'a finite'} number of at least {least}"
        until = f", less than {'2**64' if below == 2**64 else below}" if below < math.inf else ""
        raise ValueError(f"{binding} = {value!r}: {what}{until} is needed" + (f"; {note}" if note else ""))
