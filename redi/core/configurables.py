"""Where the components and the functions are that gin can configure.

gin knows a name once its module was imported, so all of them are imported before a file is parsed. This is the one
place that names modules of higher floors, as text: nothing here needs them.
"""

import importlib
import inspect

import redi
from redi.core.registry import registries

FUNCTIONS = (
    "data.audit data.cache.prepare training.trainer evaluation.samples.sample evaluation.evaluate evaluation.monitor "
    "evaluation.queries pages.report runs.profile sweeps.sweep"
).split()


def import_all() -> None:
    """Imports every kind of component and every function that gin can configure."""
    for module in (*redi.KINDS.values(), *(f"redi.{name}" for name in FUNCTIONS)):
        importlib.import_module(module)


def table() -> str:
    """Every registered component with its arguments, defaults and first docstring line."""
    import_all()
    parts = []
    for kind, registry in sorted(registries.items()):
        parts.append(f"{kind}")
        for name in registry:
            component = registry[name]
            summary = (inspect.getdoc(component) or "").partition("\n")[0]
            arguments = [
                p.name if p.default is p.empty else f"{p.name}={p.default!r}"
                for p in inspect.signature(component).parameters.values()
                if p.name not in registry.runtime and p.kind is not p.VAR_KEYWORD
            ]
            parts.append(f"  @{kind}.{name}({', '.join(arguments)})\n      {summary}")
        parts.append("")
    return "\n".join(parts)
