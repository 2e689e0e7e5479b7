"""The reference of `redi.components`: a table of the components, and a page about each with its arguments.

Only imported components are listed (see `redi.core.configurables.import_all`).
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
    """Return a table of the components of these kinds (default: all) with arguments, defaults and first sentence."""
    lines = []
    for kind in kinds or sorted(registries):
        lines.append(kind)
        for name, component in registries[kind].items():
            parameters = [p.replace(annotation=EMPTY) for p in arguments(component).values()]  # as name=default
            shown = ", ".join(str(argument) for argument in parameters if argument.name not in registries[kind].runtime)
            first = re.split(r"(?<=\.) (?=[A-Z])", " ".join(_paragraphs(component)[0].split()))[0]
            lines += [f"  @{kind}.{name}({shown})", f"      {first}"]
        lines.append("")
    return "\n".join(lines)


def page(name: str) -> str:
    """Return the page of a kind (its components and interface), or of a component or function (its arguments).

    Every argument is shown as a binding to its default, with its description. Raises ValueError for an unknown name
    (with the nearest one) or an ambiguous name.
    """
    if name in registries:
        kind = registries[name].interface
        return "\n\n".join([f"{table(name)}\nTheir interface, {kind.__module__}.{kind.__name__}:", *_paragraphs(kind)])
    entry = find(name)
    component, supplied, descriptions = entry.wrapped, entry.denylist or (), texts(entry.wrapped)
    at = "@" if entry.selector.split(".")[0] in registries else ""
    parts = [f"{at}{entry.selector.removeprefix('redi.')}  ({component.__module__})", *_paragraphs(component)]
    shown = [(key, argument) for key, argument in arguments(component).items() if key not in supplied]
    for text, group in groupby(shown, lambda pair: descriptions.get(pair[0], "")):  # several arguments may share one
        lines = [_binding(f"{entry.name}.{key}", argument) for key, argument in group]
        lines += textwrap.wrap(text, 84, initial_indent="    ", subsequent_indent="    ")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *[f"Supplied by the library: {', '.join(supplied)}"] * bool(supplied)])


def _paragraphs(component: Callable) -> list[str]:
    """Return the paragraphs of the docstring before its sections (Args, Raises, Examples) and Sphinx directives."""
    return re.split(r"\n\n(?:\w+:\n|\.\. )", inspect.getdoc(component) or "")[0].split("\n\n")


def _binding(key: str, argument: inspect.Parameter) -> str:
    required, annotation = argument.default is EMPTY, argument.annotation
    comment = ", ".join(["must be bound"] * required + [words(annotation)] * (annotation is not Any))
    return f"{key} = {'...' if required else _default(argument.default)}" + (f"  # {comment}" if comment else "")


def _default(value: Any) -> str:
    """Return a default as in a gin file. Settings of functools.partial, which gin cannot write, follow in brackets."""
    if isinstance(value, functools.partial):
        settings = ", ".join(f"{key}={setting!r}" for key, setting in value.keywords.items())
        return f"@{value.func.__name__} ({settings})"
    return f"@{value.__name__}" if callable(value) else repr(value)
