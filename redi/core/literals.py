"""Check bound values against the annotations of arguments, and read descriptions of arguments from docstrings."""

import ast
import collections.abc
import inspect
import os
import pprint
import re
import types
import typing
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import gin

from redi.core.gin_errors import binding_name
from redi.runtime.ranges import SEED
from redi.runtime.spelling import did_you_mean

OPAQUE = object()  # stands for the result of a reference, which may have any type
ABSTRACT = collections.abc
LISTS = (tuple, list, set, frozenset, ABSTRACT.Sequence, ABSTRACT.Collection, ABSTRACT.Iterable)
DICTIONARIES = (dict, ABSTRACT.Mapping)
UNIONS = (Union, types.UnionType)
# {annotation: (Python types of the literals that it accepts, their name in messages)}
SIMPLE: dict[Any, tuple[Any, str]] = {
    bool: (bool, "True or False"), int: (int, "an integer"), float: (int | float, "a number"),
    type(None): (type(None), "None"), **dict.fromkeys((str, Path, os.PathLike), (str, "text in quotes")),
}  # fmt: skip


def check_values(among: Collection[tuple[str, str, str]] | None = None) -> None:
    """Raise ValueError for bound values that gin cannot save, or that their arguments do not accept.

    Args:
        among: (scope, selector, argument) of the bindings to check. Default: all.
    """
    faults = []
    with gin.config._parse_scope(gin.config.ImportManager(gin.config._IMPORTS)):  # the scope in which gin writes
        for (scope, selector), parameters in gin.config._CONFIG.items():
            component = gin.config._REGISTRY[selector].wrapped
            for argument, value in parameters.items():
                if among is not None and (scope, selector, argument) not in among:
                    continue
                name, parameter = binding_name(scope, selector, argument), arguments(component).get(argument)
                if not _can_be_written(value):
                    description = texts(component).get(argument)
                    fault = f"{name} = {value!r}: gin cannot write such a value, so config.gin would lose it"
                    faults.append(f"{fault}. {argument}: {description}" if description else fault)
                elif parameter and (message := mismatch(name, _literal(value), parameter)):
                    faults.append(message)
    if faults:
        raise ValueError("\n".join(faults))


def _can_be_written(value: Any) -> bool:
    text = pprint.pformat(value, width=76)  # as gin writes it
    try:
        return pprint.pformat(gin.config.parse_value(text), width=76) == text  # unlike ==, tells 0.0 from -0.0
    except (SyntaxError, ValueError):
        return False


def _literal(value: Any) -> Any:
    """Return a bound value with macros replaced by their values, and other references by OPAQUE."""
    if isinstance(value, gin.config.ConfigurableReference):
        is_macro = value.configurable.selector == "gin.macro"
        return _literal(gin.config._CONFIG[value.config_key]["value"]) if is_macro else OPAQUE
    if isinstance(value, dict):
        return {_literal(key): _literal(each) for key, each in value.items()}
    return type(value)(map(_literal, value)) if isinstance(value, list | tuple) else value


@cache
def arguments(component: Callable) -> dict[str, inspect.Parameter]:
    """Return {name: parameter} with resolved annotations.

    Arguments that a class passes on as `**settings` have the annotation of the base class. A missing annotation, or one
    that cannot be resolved, becomes Any.
    """
    annotations: dict[str, Any] = {}
    for source in reversed(getattr(component, "__mro__", [component])):
        with suppress(KeyError, NameError, AttributeError, TypeError, SyntaxError):  # annotations of plug-ins may fail
            annotations |= typing.get_type_hints(vars(source)["__init__"] if inspect.isclass(source) else source)
    return {
        name: parameter.replace(annotation=annotations.get(name, Any))
        for name, parameter in inspect.signature(component).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def texts(component: Callable) -> dict[str, str]:
    """Return {argument: description} from the `Args:` sections of a function, or of a class and its bases."""
    descriptions = {}
    for source in reversed(getattr(component, "__mro__", [component])):
        doc = inspect.cleandoc(source.__doc__ or "") + "\n"
        section = re.search(r"^Args:\n((?:    .*\n|\n)+)", doc, re.MULTILINE)
        for entry in re.split(r"\n(?=\S)", inspect.cleandoc(section[1])) if section else ():
            names, _, text = entry.partition(":")  # `width, depth: ...` describes both
            for name in re.sub(r"\(.*?\)", "", names).split(","):
                descriptions[name.strip(" *`")] = " ".join(text.split())
    return descriptions


def mismatch(name: str, value: Any, argument: inspect.Parameter) -> str | None:
    """Return why `value` cannot be bound to 'Component.argument', with a suggestion; None if it can."""
    annotation, default = argument.annotation, argument.default
    if type(value) is type(default) and value == default:
        return None
    if not accepts(annotation, value):
        return f"{name} = {value!r}: must be {words(annotation)}{_instead(annotation, value, default)}"
    numbers = [each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, int)]
    if name.endswith(("seed", "seeds")) and not all(SEED["least"] <= number < SEED["below"] for number in numbers):
        return f"{name} = {value!r}: must be an integer in 0 ... 2**64 - 1"
    return None


def accepts(annotation: Any, value: Any) -> bool:
    """Return whether an annotation accepts a literal. Unknown annotations accept everything.

    Examples:
        >>> accepts(int, 3), accepts(int, 3.0), accepts(tuple[float, float], [0, 1]), accepts(bool, 1)
        (True, False, True, False)
    """
    base, inner = get_origin(annotation) or annotation, get_args(annotation)
    if value is OPAQUE:
        return True
    if base is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if base in UNIONS:
        # Component classes among the alternatives are skipped, because they never accept a literal.
        literals = [each for each in inner if (get_origin(each) or each) in (Literal, *SIMPLE, *LISTS, *DICTIONARIES)]
        return any(accepts(each, value) for each in (literals if set(literals) - {type(None)} else inner))
    if base is Annotated:
        return accepts(inner[0], value)
    if base in SIMPLE:
        return isinstance(value, SIMPLE[base][0]) and (base is bool or not isinstance(value, bool))
    if base in DICTIONARIES:
        of_key, of_value = inner or (Any, Any)
        return isinstance(value, dict) and all(accepts(of_key, k) and accepts(of_value, v) for k, v in value.items())
    if base in LISTS:
        if not isinstance(value, list | tuple):
            return False
        if base is tuple and inner and inner[-1] is not Ellipsis:
            return len(value) == len(inner) and all(map(accepts, inner, value))
        return all(accepts(inner[0] if inner else Any, each) for each in value)
    return True


def words(annotation: Any) -> str:
    """Describe the values that an annotation accepts, for messages.

    Examples:
        >>> words(int | None), words(Literal["paper", "released"])
        ('an integer or None', "'paper' or 'released'")
    """
    base, inner = get_origin(annotation) or annotation, get_args(annotation)
    if base is Literal:
        return " or ".join(map(repr, inner))
    if base in UNIONS:
        shown = [each for each in inner if getattr(each, "__module__", None) != "torch"]  # gin cannot bind tensors
        return " or ".join(dict.fromkeys(map(words, shown)))
    if base is Annotated:
        return words(inner[0])
    if base in DICTIONARIES:
        return f"a dictionary {{{': '.join(map(words, inner)) or '...'}}}"
    if base in LISTS:
        return f"a list [{', '.join('...' if each is Ellipsis else words(each) for each in inner)}]"
    if base in (Any, type, ABSTRACT.Callable):
        return "anything" if base is Any else "a function or class (@...)"
    return SIMPLE[base][1] if base in SIMPLE else f"a component (@{getattr(base, '__name__', base)})"


def _instead(annotation: Any, value: Any, default: Any) -> str:
    """Return '; write X' if X is clearly the intended value, else ''."""
    if value is None:
        return f"; omit it for the default {default!r}" if isinstance(default, int | float | str) else ""
    if get_origin(annotation) is Literal and isinstance(value, str):
        return did_you_mean(value, map(str, get_args(annotation)))
    candidates: list[Any] = [
        kind(value) for kind in (bool, int) if isinstance(value, int | float) and kind(value) == value
    ]
    for text in (value, value.strip().capitalize()) if isinstance(value, str) else ():  # 'true' becomes True
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            candidates.append(ast.literal_eval(text))
    if not isinstance(value, list | tuple | dict):
        candidates += [value], str(value)
    suggestions = [each for each in candidates if accepts(annotation, each)]
    return f"; write {suggestions[0]!r}" if suggestions else ""
