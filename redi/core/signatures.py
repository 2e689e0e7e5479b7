"""What a class or function takes: every argument with its annotation, its default and its text in the docstring."""

import inspect
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Argument:
    """One argument of a class or function."""

    annotation: Any  # Any where there is none, or none that can be resolved
    default: Any  # inspect.Parameter.empty where there is none
    text: str  # of the docstring; "" where it says nothing


@cache
def arguments(component: Callable) -> dict[str, Argument]:
    """{name: argument}. What a class passes on to its bases, as **settings, is annotated and explained there."""
    annotations, texts = {}, {}
    for source in [*component.__mro__] if inspect.isclass(component) else [component]:
        annotations = _annotations(source) | annotations
        texts = dict(_texts(vars(source).get("__doc__") or getattr(source, "__doc__", None) or "")) | texts
    return {
        name: Argument(annotations.get(name, Any), parameter.default, texts.get(name, ""))
        for name, parameter in inspect.signature(component).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def summary(component: Callable) -> str:
    """The first sentence of the docstring, on one line."""
    paragraph = " ".join((inspect.getdoc(component) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def description(component: Callable) -> str:
    """The docstring without the sections about arguments and errors."""
    return re.split(r"\n\n(?=\w+:\n)", inspect.getdoc(component) or "")[0]


def _annotations(source: Callable) -> dict[str, Any]:
    function = vars(source).get("__init__") if inspect.isclass(source) else source
    try:
        return typing.get_type_hints(function) if inspect.isfunction(function) else {}
    except (NameError, AttributeError, TypeError, SyntaxError):  # of a plug-in: text that names nothing at run time
        return {}


def _texts(doc: str) -> Iterator[tuple[str, str]]:
    """(argument, text) of a section `Args:`; several arguments may share one text, as `width, depth: ...`."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)+)", inspect.cleandoc(doc) + "\n", re.MULTILINE)
    for entry in re.split(r"\n(?=\S)", inspect.cleandoc(section[1])) if section else ():
        names, colon, text = entry.partition(":")
        if colon:
            for name in re.sub(r"\(.*?\)", "", names).split(","):
                yield name.strip(" *`"), " ".join(text.split())
