"""Points of a sweep that are gin files, such as the presets in `gin/levers/`."""

from collections.abc import Mapping
from typing import Any

from redi.core import config

KEY = "gin_file"


def read_presets(points: Any) -> Any:
    """Return `sweep.points` with `'gin_file': name`, or a list of names, replaced by the bindings of these files.

    Other bindings of an entry take precedence. Raises ValueError if a file does not parse.
    """
    if not isinstance(points, list | tuple):
        return points
    return [_with_bindings(entry) if isinstance(entry, Mapping) and KEY in entry else entry for entry in points]


def _with_bindings(entry: Mapping[str, Any]) -> dict[str, Any]:
    names = [entry[KEY]] if isinstance(entry[KEY], str) else entry[KEY]
    if not (isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names)):
        raise ValueError(f"sweep.points: {KEY!r}: {names!r}: must be the name of a gin file, or a list of names")
    with config.isolated():
        config.parse(names)
        bindings = config.bindings()
    bindings |= {config.canonical(key): value for key, value in entry.items() if key != KEY}
    # gin resolves macros in the value of sweep.points, where those of a point do not exist yet.
    macros = {key: repr(value)[1:] for key, value in bindings.items() if repr(value).startswith("%")}
    return {
        key: bindings.get(macros.get(key, key), value) for key, value in bindings.items() if key not in macros.values()
    }
