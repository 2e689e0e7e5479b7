"""Every value that a configuration binds: whether it can be written and read again, and whether arguments take it."""

import inspect
import pprint
from collections.abc import Collection
from typing import Any

import gin

from redi.core.gin_names import binding_name
from redi.core.literals import OPAQUE, mismatch
from redi.core.signatures import Argument, arguments

UNKNOWN = Argument(Any, inspect.Parameter.empty, "")  # of a macro, or of a class that takes any


def check_values(among: Collection[tuple[str, str, str]] | None = None) -> None:
    """Raise ValueError for bound values that saved configurations would lose, or that their arguments do not take.

    Args:
        among: (scope, selector, argument) of those to check; default: all.
    """
    faults = []
    with gin.config._parse_scope(gin.config.ImportManager(gin.config._IMPORTS)):  # as where gin writes
        for (scope, selector), parameters in gin.config._CONFIG.items():
            known = arguments(gin.config._REGISTRY[selector].wrapped)
            for argument, value in parameters.items():
                if among is not None and (scope, selector, argument) not in among:
                    continue
                name, taken = binding_name(scope, selector, argument), known.get(argument, UNKNOWN)
                if not _can_be_written(value):
                    lost = f"{name} = {value!r}: gin cannot write such a value, so config.gin would lose it"
                    faults.append(f"{lost}. {argument}: {taken.text}" if taken.text else lost)
                elif fault := mismatch(name, _literal(value), taken):
                    faults.append(fault)
    if faults:
        raise ValueError("\n".join(faults))


def _can_be_written(value: Any) -> bool:
    text = pprint.pformat(value, width=76)  # as gin writes it
    try:
        return pprint.pformat(gin.config.parse_value(text), width=76) == text  # unlike ==, tells 0.0 from -0.0
    except (SyntaxError, ValueError):
        return False


def _literal(value: Any) -> Any:
    """A bound value with macros replaced by what they stand for, and other references by OPAQUE."""
    if isinstance(value, gin.config.ConfigurableReference):
        is_macro = value.configurable.selector == "gin.macro"
        return _literal(gin.config._CONFIG[value.config_key]["value"]) if is_macro else OPAQUE
    if isinstance(value, dict):
        return {_literal(key): _literal(each) for key, each in value.items()}
    return type(value)(map(_literal, value)) if isinstance(value, list | tuple) else value
