"""What gin can configure, as text: a table of the components, and a page about each with what its arguments mean.

Of what was imported (`redi.core.configurables.import_all`).
"""

import functools
import inspect
import re
import textwrap
from collections.abc import Callable
from itertools import groupby
from typing import Any

from redi.core.gin_errors import find
from redi.core.literals import arguments, texts, words
from redi.core.registry import registries

EMPTY = inspect.Parameter.empty


def table(*kinds: str) -> str:
    """The components of these kinds (default: of all) with arguments, defaults and first sentence."""
    lines = []
    for kind in kinds or sorted(registries):
        lines.append(kind)
        for name, component in registries[kind].items():
            taken = [p.replace(annotation=EMPTY) for p in arguments(component).values()]  # as name=default
            shown = ", ".join(str(argument) for argument in taken if argument.name not in registries[kind].runtime)
            first = re.split(r"(?<=\.) (?=[A-Z])", " ".join(_paragraphs(component)[0].split()))[0]
            lines += [f"  @{kind}.{name}({shown})", f"      {first}"]
        lines.append("")
    return "\n".join(lines)


def page(name: str) -> str:
    """About a kind: its components and their interface. About a component or function: what it is, and every argument
    as a binding to its default, with its meaning.

    Raises ValueError: no such name, with the nearest one; or several things have it.
    """
    if name in registries:
        kind = registries[name].interface
        return "\n\n".join([f"{table(name)}\nTheir interface, {kind.__module__}.{kind.__name__}:", *_paragraphs(kind)])
    found = find(name)
    component, supplied, meanings = found.wrapped, found.denylist or (), texts(found.wrapped)
    at = "@" if found.selector.split(".")[0] in registries else ""
    parts = [f"{at}{found.selector.removeprefix('redi.')}  ({component.__module__})", *_paragraphs(component)]
    shown = [(key, argument) for key, argument in arguments(component).items() if key not in supplied]
    for meaning, alike in groupby(shown, lambda pair: meanings.get(pair[0], "")):  # several arguments may share one
        lines = [_binding(f"{found.name}.{key}", argument) for key, argument in alike]
        lines += textwrap.wrap(meaning, 100, initial_indent="    ", subsequent_indent="    ")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *[f"Supplied by the library: {', '.join(supplied)}"] * bool(supplied)])


def _paragraphs(component: Callable) -> list[str]:
    """Those of the docstring before its sections about arguments and errors, and what is there for Sphinx."""
    return re.split(r"\n\n(?:\w+:\n|\.\. )", inspect.getdoc(component) or "")[0].split("\n\n")


def _binding(key: str, argument: inspect.Parameter) -> str:
    needed, annotation = argument.default is EMPTY, argument.annotation
    comment = ", ".join(["must be bound"] * needed + [words(annotation)] * (annotation is not Any))
    return f"{key} = {'...' if needed else _default(argument.default)}" + (f"  # {comment}" if comment else "")


def _default(value: Any) -> str:
    """A default as in a gin file, as far as one can say it there."""
    if isinstance(value, functools.partial):
        settings = ", ".join(f"{key}={setting!r}" for key, setting in value.keywords.items())
        return f"@{value.func.__name__} ({settings})"
    return f"@{value.__name__}" if callable(value) else repr(value)
