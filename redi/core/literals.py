"""Whether a value that was written in a gin file is what an argument's annotation asks for."""

import ast
import collections.abc
import os
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from redi.core.signatures import Argument
from redi.runtime.randomness import is_seed
from redi.runtime.spelling import did_you_mean

OPAQUE = object()  # stands for what a reference gives: it may be anything
ABSTRACT = collections.abc
LISTS = (tuple, list, set, frozenset, ABSTRACT.Sequence, ABSTRACT.Collection, ABSTRACT.Iterable)
DICTIONARIES = (dict, ABSTRACT.Mapping)
UNIONS = (Union, types.UnionType)
# {annotation: (Python types of the literals that it takes, in words)}
SIMPLE = {
    bool: (bool, "True or False"), int: (int, "an integer"), float: (int | float, "a number"),
    type(None): (type(None), "None"), **dict.fromkeys((str, Path, os.PathLike), (str, "text in quotes")),
}  # fmt: skip


def mismatch(name: str, value: Any, argument: Argument) -> str | None:
    """What is wrong with binding `value` to 'Component.argument', with what to write instead; None: nothing."""
    annotation, default = argument.annotation, argument.default
    if type(value) is type(default) and value == default:
        return None
    if not accepts(annotation, value):
        return f"{name} = {value!r}: it takes {words(annotation)}{_instead(annotation, value, default)}"
    numbers = [each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, int)]
    if name.endswith(("seed", "seeds")) and not all(map(is_seed, numbers)):
        return f"{name} = {value!r}: a seed is an integer in 0 ... 2**64 - 1"
    return None


def accepts(annotation: Any, value: Any) -> bool:
    """Whether a literal may stand where an annotation asks for something. What is not known here takes anything."""
    base, inner = get_origin(annotation) or annotation, get_args(annotation)
    if value is OPAQUE:
        return True
    if base is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if base in UNIONS:
        # What a component class among the alternatives would take is never a literal.
        known = [each for each in inner if (get_origin(each) or each) in (Literal, *SIMPLE, *LISTS, *DICTIONARIES)]
        return any(accepts(each, value) for each in (known if set(known) - {type(None)} else inner))
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
    """What an annotation takes, for people."""
    base, inner = get_origin(annotation) or annotation, get_args(annotation)
    if base is Literal:
        return " or ".join(map(repr, inner))
    if base in UNIONS:
        return " or ".join(dict.fromkeys(map(words, inner)))
    if base is Annotated:
        return words(inner[0])
    if base in DICTIONARIES:
        return f"a dictionary {{{': '.join(map(words, inner)) or '...'}}}"
    if base in LISTS:
        return f"a list [{', '.join('...' if each is Ellipsis else words(each) for each in inner)}]"
    if base in (Any, ABSTRACT.Callable):
        return "anything" if base is Any else "a function or class (@...)"
    return SIMPLE[base][1] if base in SIMPLE else f"a component (@{getattr(base, '__name__', base)})"


def _instead(annotation: Any, value: Any, default: Any) -> str:
    """'; write X', where it is clear what was meant."""
    if value is None:
        return f"; leave it out for {default!r}" if isinstance(default, int | float | str) else ""
    if get_origin(annotation) is Literal and isinstance(value, str):
        return did_you_mean(value, map(str, get_args(annotation)))
    candidates = [bool(value)] if value in (0, 1) else []
    if isinstance(value, float) and value.is_integer():
        candidates.append(int(value))
    if isinstance(value, str):
        for text in (value, value.strip().capitalize()):  # also 'true'
            try:
                candidates.append(ast.literal_eval(text))
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    meant = [each for each in (*candidates, [value], str(value)) if accepts(annotation, each)]
    return f"; write {meant[0]!r}" if meant else ""
