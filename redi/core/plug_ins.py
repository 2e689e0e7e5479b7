"""Hashes of the source code of plug-ins, so that edits after a run are noticed."""

import hashlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

log = logging.getLogger(__name__)

# Packages whose code is not a plug-in. Records hold their versions.
LIBRARIES = {"redi", "gin", "numpy", "torch", "torchvision", "timm", "diffusers", "cleanfid", *sys.stdlib_module_names}


@cache  # the source at the first call, which is the code that runs, even if the file is edited later
def source_sha256(code: type | Callable) -> str | None:
    """Return the SHA-256 of the modules that define a plug-in class, its bases, or a function.

    None: the code is not a plug-in, or its source is not available. In a script or notebook only the source of the
    class or function itself is hashed, because the rest changes often. Modules that it imports are never hashed.
    """
    try:
        parts = [p if p.__module__ == "__main__" else sys.modules[p.__module__] for p in _plug_in_code(code)]
        sources = dict.fromkeys(map(inspect.getsource, parts))
    except (OSError, TypeError, KeyError):  # no source, for example in an interpreter
        return None
    return hashlib.sha256("".join(sources).encode()).hexdigest() if sources else None


def plug_ins(*components: object) -> dict[str, str | None]:
    """Return {name: `source_sha256`} of all plug-ins in these classes, functions and objects; networks with modules."""
    parts = [part for one in components for part in (one.modules() if isinstance(one, nn.Module) else (one,))]
    owners = {part if inspect.isclass(part) or inspect.isroutine(part) else type(part) for part in parts}
    return {f"{c.__module__}.{c.__qualname__}": source_sha256(c) for owner in owners for c in _plug_in_code(owner)}


def _plug_in_code(code: type | Callable) -> list[Any]:
    """Return a class with its bases, or a function, without those of `LIBRARIES`."""
    parts = getattr(code, "__mro__", (code,))
    # Functions in C may have no module.
    return [part for part in parts if (part.__module__ or "builtins").split(".")[0] not in LIBRARIES]


def warn_of_edits(record: Mapping, folder: Path, *components: object) -> None:
    """Warn about plug-ins among these components whose source differs from that in the record of a checkpoint."""
    before, now = record.get("plug_ins", {}), plug_ins(*components)
    if edited := sorted(name for name in before.keys() & now if before[name] != now[name]):
        log.warning("the code of %s was edited after %s was written: the new code is used", ", ".join(edited), folder)
