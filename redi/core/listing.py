"""What gin can configure, as text: a table of the components, and a page about each with what its arguments mean.

Of what was imported (`redi.core.configurables.import_all`).
"""

import functools
import inspect
import textwrap
from typing import Any

from redi.core.gin_names import find
from redi.core.literals import words
from redi.core.registry import registries
from redi.core.signatures import Argument, arguments, description, summary


def table(*kinds: str) -> str:
    """The components of these kinds (default: of all) with arguments, defaults and first sentence."""
    lines = []
    for kind in kinds or sorted(registries):
        lines.append(kind)
        for name, component in registries[kind].items():
            shown = [
                key if argument.default is inspect.Parameter.empty else f"{key}={argument.default!r}"
                for key, argument in arguments(component).items()
                if key not in registries[kind].runtime
            ]
            lines += [f"  @{kind}.{name}({', '.join(shown)})", f"      {summary(component)}"]
        lines.append("")
    return "\n".join(lines)


def page(name: str) -> str:
    """About a kind: its components and their interface. About a component or function: what it is, and every argument
    as a binding to its default, with its meaning.

    Raises ValueError: no such name, with the nearest one; or several things have it.
    """
    if name in registries:
        kind = registries[name].interface
        return f"{table(name)}\nTheir interface, {kind.__module__}.{kind.__name__}:\n\n{description(kind)}"
    found = find(name)
    of_kind = found.selector.split(".")[0] in registries
    component, supplied = found.wrapped, found.denylist or ()
    lines = [f"{'@' if of_kind else ''}{found.selector.removeprefix('redi.')}  ({component.__module__})"]
    lines += ["", description(component)]
    for key, argument in arguments(component).items():
        if key not in supplied:
            lines += ["", *_binding(f"{found.name}.{key}", argument)]
    return "\n".join([*lines, "", f"Supplied by the library: {', '.join(supplied)}"] if supplied else lines)


def _binding(key: str, argument: Argument) -> list[str]:
    needed = argument.default is inspect.Parameter.empty
    comment = ", ".join(["must be bound"] * needed + [words(argument.annotation)] * (argument.annotation is not Any))
    line = f"{key} = {'...' if needed else _default(argument.default)}" + (f"  # {comment}" if comment else "")
    return [line, *textwrap.wrap(argument.text, 100, initial_indent="    ", subsequent_indent="    ")]


def _default(value: Any) -> str:
    """A default as in a gin file, as far as one can say it there."""
    if isinstance(value, functools.partial):
        settings = ", ".join(f"{key}={setting!r}" for key, setting in value.keywords.items())
        return f"@{value.func.__name__} ({settings})"
    return f"@{value.__name__}" if callable(value) else repr(value)
