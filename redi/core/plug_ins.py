"""Which code the components of other packages are, so that results of an edited one are noticed."""

import hashlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from torch import nn

log = logging.getLogger(__name__)

# Whose code is no plug-in: records hold the versions.
LIBRARIES = {"redi", "gin", "numpy", "torch", "torchvision", "timm", "diffusers", "cleanfid", *sys.stdlib_module_names}


@cache  # the source as it was at first, which is what runs
def source_sha256(code: type | Callable) -> str | None:
    """SHA-256 of the source of the plug-in modules that a class, with those that it derives from, or a function is
    from; None where there is none. In a script or notebook its own source alone counts: the rest changes all the time.
    What these modules import does not count.
    """
    try:
        parts = [p if p.__module__ == "__main__" else sys.modules[p.__module__] for p in _plug_in_code(code)]
        sources = dict.fromkeys(map(inspect.getsource, parts))
    except (OSError, TypeError, KeyError):  # typed into an interpreter: there is nothing to compare
        return None
    return hashlib.sha256("".join(sources).encode()).hexdigest() if sources else None


def plug_ins(*components: object) -> dict[str, str | None]:
    """{name: `source_sha256`} of the code outside the library that these classes, functions, objects or networks with
    all of their modules are.
    """
    parts = [part for one in components for part in (one.modules() if isinstance(one, nn.Module) else (one,))]
    owners = {part if inspect.isclass(part) or inspect.isroutine(part) else type(part) for part in parts}
    return {f"{c.__module__}.{c.__qualname__}": source_sha256(c) for own in owners for c in _plug_in_code(own)}


def _plug_in_code(code: type | Callable) -> list[type | Callable]:
    """A class and those that it derives from, or a function: less what is of the library."""
    parts = getattr(code, "__mro__", (code,))  # functions in C may have no module
    return [part for part in parts if (part.__module__ or "builtins").split(".")[0] not in LIBRARIES]


def warn_of_edits(record: Mapping, folder: Path, *components: object) -> None:
    """Warn of the plug-ins among these components whose source differs from that in the record of a checkpoint."""
    before, now = record.get("plug_ins", {}), plug_ins(*components)
    if edited := sorted(name for name in before.keys() & now if before[name] != now[name]):
        log.warning("edited since %s was written, and used as it is now: %s", folder, ", ".join(edited))
