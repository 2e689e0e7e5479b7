"""The points of a sweep: their bindings, and names that show how they differ."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

LONGEST_NAME = 120  # characters of a folder name; file systems allow 255 bytes


@dataclass(frozen=True)
class Point:
    """One point, before its configuration is parsed."""

    bindings: Mapping[str, str]  # {key: value as gin text}, seeds last
    parts: Mapping[str, str]  # {key: part of the name, such as 'rank=8'}
    entry: tuple[str, ...] = ()  # the keys that come from `sweep.points`
    by_hand: str | None = None  # the name in `sweep.names`, which replaces the parts of `entry`

    @property
    def name(self) -> str:
        """The name, which is also the point's folder."""
        return self.label(self.bindings) or "base"

    @property
    def group(self) -> str:
        """The name without seeds. Points of one group differ only in their seeds."""
        return self.label([key for key in self.bindings if not is_seed(key)]) or "all"

    def label(self, keys: Collection[str]) -> str:
        """Return the name restricted to these keys."""
        parts = [part for key, part in self.parts.items() if key in keys]
        if self.by_hand is not None and all(key in keys for key in self.entry):
            parts = [self.by_hand, *(part for key, part in self.parts.items() if key in keys and key not in self.entry)]
        return shortened(",".join(parts))


def is_seed(key: str) -> bool:
    """Return whether a binding is a seed. Points that differ only in seeds are repetitions."""
    return re.search(r"(^|[._])seeds?$", key, re.IGNORECASE) is not None


def expand(grid: Any, points: Any, names: Any) -> list[Point]:
    """Combine every entry of `points` with every element of the product of `grid`; see `sweep` for the arguments.

    Keys are sorted, seeds last: a saved sweep file, in which gin sorts them, then gives the same names.

    Raises ValueError: the sweep is empty or malformed, a key is in both, or two points have the same name.
    """
    grid, points, names = _checked(grid, points, names)
    ordered = {key: grid[key] for key in _sorted(grid)}
    short = short_keys({*grid, *(key for entry in points for key in entry)})
    expanded = []
    for index, entry in enumerate(points or [{}]):
        for values in product(*ordered.values()):
            together = {**entry, **dict(zip(ordered, values, strict=True))}
            bindings = {key: repr(together[key]) for key in _sorted(together)}
            parts = {key: f"{short[key]}={short_value(text)}" for key, text in bindings.items()}
            expanded.append(Point(bindings, parts, tuple(entry), names[index] if names else None))
    for name, count in Counter(point.name for point in expanded).items():
        if count > 1:
            same = [point for point in expanded if point.name == name]
            what = "equal bindings" if same[0].bindings == same[1].bindings else "different bindings"
            raise ValueError(
                f"{count} points of the sweep are called {name!r} and have {what}: list every value once, or name the "
                "entries of sweep.points with sweep.names = ['...', ...]"
            )
    return expanded


def short_value(text: str) -> str:
    """Return a gin value as part of a folder name: "[@guidance.ClassifierFree()]" -> 'ClassifierFree'."""
    text = re.sub(r"@((?:\w+/)*)(?:\w+\.)*(\w+)(?:\(\))?", lambda match: match[1].replace("/", ".") + match[2], text)
    text = re.sub(r"['\"\[\](){}%]", "", text).strip(" ,")
    text = re.sub(r"\s*:\s*", "-", re.sub(r"\s*,\s*", "+", text))
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "none"


def shortened(name: str) -> str:
    """Return the name, or its beginning and a hash if it is too long for a folder."""
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _sorted(keys: Collection[str]) -> list[str]:
    return sorted(keys, key=lambda key: (is_seed(key), key))


def short_keys(keys: Collection[str]) -> dict[str, str]:
    """Return {key: its shortest unique form}: 'scope/PCA.rank' -> 'rank', 'PCA.rank' or 'scope-PCA.rank'."""
    forms = {key: (key.rsplit(".", 1)[-1], key.rsplit("/", 1)[-1], key.replace("/", "-")) for key in keys}
    short = {}
    for key, candidates in forms.items():
        others = [form for other, own_forms in forms.items() if other != key for form in own_forms]
        short[key] = next((form for form in candidates if form not in others), candidates[-1])
    return short


def _checked(grid: Any, points: Any, names: Any) -> tuple[dict, list[dict], list[str]]:
    grid, points = {} if grid is None else grid, [] if points is None else points
    if not isinstance(grid, Mapping):
        raise ValueError(f"sweep.grid = {grid!r}: bind a dictionary, such as {{'PCA.rank': [4, 8], ...}}")
    if not (isinstance(points, list | tuple) and all(isinstance(entry, Mapping) for entry in points)):
        raise ValueError(f"sweep.points = {points!r}: bind a list of dictionaries, such as [{{'PCA.rank': 4}}, ...]")
    if not grid and not points:
        raise ValueError("the sweep is empty: bind sweep.grid = {'PCA.rank': [4, 8], ...} or sweep.points = [{...}]")
    for key, values in grid.items():
        if not (isinstance(values, list | tuple) and values):
            raise ValueError(f"sweep.grid[{key!r}] = {values!r}: bind a list of at least one value, not a macro")
    for key in [key for bindings in (grid, *points) for key in bindings]:
        if not isinstance(key, str):
            raise ValueError(f"the sweep binds {key!r}: keys must be strings, such as 'PCA.rank'")
    for entry in points:
        if both := sorted(grid.keys() & entry.keys()):
            raise ValueError(f"{both[0]} is bound by sweep.grid and by sweep.points: keep one of them")
    return dict(grid), list(points), _checked_names(names, points)


def _checked_names(names: Any, points: Sequence) -> list[str]:
    if names is None:
        return []
    if not (isinstance(names, list | tuple) and len(names) == len(points)):
        raise ValueError(f"sweep.names = {names!r}: bind one name per entry of sweep.points, {len(points)} in all")
    for name in names:
        if not (isinstance(name, str) and re.fullmatch(r"[\w+=-][\w.,+=-]*", name)):
            raise ValueError(f"sweep.names contains {name!r}: must consist of letters, digits and _ - + = . ,")
    return list(names)
