"""The points of a sweep: their bindings, and names that say what is particular about them."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

LONGEST_NAME = 120  # of a folder; file systems allow 255 bytes


@dataclass(frozen=True)
class Point:
    """One point, before its configuration is parsed."""

    bindings: Mapping[str, str]  # key -> value as gin text; seeds come last
    parts: Mapping[str, str]  # key -> what it adds to the name, as 'rank=8'
    entry: tuple[str, ...] = ()  # the keys that come from `sweep.points`
    by_hand: str | None = None  # the name in `sweep.names`, in place of the parts of `entry`

    @property
    def name(self) -> str:
        return self.label(self.bindings) or "base"

    @property
    def group(self) -> str:
        """The name without seeds: points of one group are repetitions of each other."""
        return self.label([key for key in self.bindings if not is_seed(key)]) or "all"

    def label(self, keys: Collection[str]) -> str:
        """The name restricted to these keys."""
        named = self.by_hand is not None and all(key in keys for key in self.entry)
        parts = [part for key, part in self.parts.items() if key in keys and not (named and key in self.entry)]
        return shortened(",".join([self.by_hand] * named + parts))


def is_seed(key: str) -> bool:
    """Whether points that differ in this binding are repetitions."""
    return re.search(r"(^|[._])seeds?$", key, re.IGNORECASE) is not None


def expand(grid: Any, points: Any, names: Any) -> list[Point]:
    """Every entry of `points` with every element of the product of `grid`; see `sweep` for the arguments.

    Keys are sorted, seeds last, so that a saved sweep file, in which gin sorts them, names its points as the
    original does. Values are what gin parsed, references unevaluated.

    Raises ValueError: an empty or misshapen sweep, a key in both, or two points with the same name.
    """
    grid, points, names = _checked(grid, points, names)
    ordered = {key: grid[key] for key in _sorted(grid)}
    short = short_keys({*grid, *(key for entry in points for key in entry)})
    found = []
    for index, entry in enumerate(points or [{}]):
        for values in product(*ordered.values()):
            together = {**entry, **dict(zip(ordered, values, strict=True))}
            bindings = {key: repr(together[key]) for key in _sorted(together)}
            parts = {key: f"{short[key]}={short_value(text)}" for key, text in bindings.items()}
            found.append(Point(bindings, parts, tuple(entry), names[index] if names else None))
    for name, count in Counter(point.name for point in found).items():
        if count > 1:
            same = [point for point in found if point.name == name]
            what = "the same bindings" if same[0].bindings == same[1].bindings else "only more alike than their names"
            raise ValueError(
                f"{count} points of the sweep are called {name!r}; they have {what}: give every value once, "
                "or names of your own to the entries of sweep.points with sweep.names = ['...', ...]"
            )
    return found


def short_value(text: str) -> str:
    """A gin value as part of a folder's name: "[@guidance.ClassifierFree()]" -> 'ClassifierFree'."""
    text = re.sub(r"@((?:\w+/)*)(?:\w+\.)*(\w+)(?:\(\))?", lambda found: found[1].replace("/", ".") + found[2], text)
    text = re.sub(r"['\"\[\](){}%]", "", text).strip(" ,")
    text = re.sub(r"\s*:\s*", "-", re.sub(r"\s*,\s*", "+", text))
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "none"


def shortened(name: str) -> str:
    """The name, or its beginning and a hash where it is too long for a folder."""
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _sorted(keys: Collection[str]) -> list[str]:
    return sorted(keys, key=lambda key: (is_seed(key), key))


def short_keys(keys: Collection[str]) -> dict[str, str]:
    """Of 'scope/PCA.rank' the last part that tells it from the others: 'rank', 'PCA.rank' or 'scope-PCA.rank'."""
    forms = {key: (key.rsplit(".", 1)[-1], key.rsplit("/", 1)[-1], key.replace("/", "-")) for key in keys}
    short = {}
    for key, candidates in forms.items():
        others = [form for other, known in forms.items() if other != key for form in known]
        short[key] = next((form for form in candidates if form not in others), candidates[-1])
    return short


def _checked(grid: Any, points: Any, names: Any) -> tuple[dict, list[dict], list[str]]:
    grid, points = {} if grid is None else grid, [] if points is None else points
    if not isinstance(grid, Mapping):
        raise ValueError(f"sweep.grid = {grid!r}: a dictionary is needed, as {{'PCA.rank': [4, 8], ...}}")
    if not (isinstance(points, list | tuple) and all(isinstance(entry, Mapping) for entry in points)):
        raise ValueError(f"sweep.points = {points!r}: a list of dictionaries is needed, as [{{'PCA.rank': 4}}, ...]")
    if not grid and not points:
        raise ValueError("an empty sweep: bind sweep.grid = {'PCA.rank': [4, 8], ...} or sweep.points = [{...}, ...]")
    for key, values in grid.items():
        if not (isinstance(values, list | tuple) and values):
            raise ValueError(f"sweep.grid[{key!r}] = {values!r}: a list of at least one value is needed, and no macro")
    for key in [key for known in (grid, *points) for key in known]:
        if not isinstance(key, str):
            raise ValueError(f"the sweep binds {key!r}: keys are text, as 'PCA.rank'")
    for entry in points:
        if both := sorted(grid.keys() & entry.keys()):
            raise ValueError(f"{both[0]} is bound by sweep.grid and by sweep.points: leave it in one of them")
    return dict(grid), list(points), _checked_names(names, points)


def _checked_names(names: Any, points: Sequence) -> list[str]:
    if names is None:
        return []
    if not (isinstance(names, list | tuple) and len(names) == len(points)):
        raise ValueError(f"sweep.names = {names!r}: one name for each of the {len(points)} entries of sweep.points")
    for name in names:
        if not (isinstance(name, str) and re.fullmatch(r"[\w+=-][\w.,+=-]*", name)):
            raise ValueError(f"sweep.names has {name!r}: letters, digits and _ - + = . , make a name")
    return list(names)
