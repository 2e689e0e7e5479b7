"""Names of bindings and configurables, and readable messages for the errors of gin."""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager

import gin

from redi.core.gin_files import statements
from redi.core.registry import registries
from redi.runtime.spelling import did_you_mean

MARKS = "text needs quotes ('a/folder'), a component @, a macro %"


def binding_name(scope: str, selector: str, argument: str) -> str:
    """Return the name of a binding as in saved configurations: 'scope/PCA.rank', or the name of a macro."""
    return scope if selector == "gin.macro" else f"{scope}/{short(selector)}.{argument}".lstrip("/")


def short(selector: str) -> str:
    """Return the shortest unambiguous name of a configurable."""
    return gin.config._REGISTRY.minimal_selector(selector)


def canonical(key: str) -> str:
    """Return the name of a binding as in saved configurations: 'reducers.PCA.rank' -> 'PCA.rank'.

    Raises ValueError if there is no such argument.
    """
    if "." not in key:  # a macro
        return key
    return binding_name(*gin.config.ParsedBindingKey.parse(key).scope_selector_arg)


def find(name: str):
    """Return the registry entry of gin for a name. Raises ValueError if the name is unknown or ambiguous."""
    registry = gin.config._REGISTRY
    if not (selectors := registry.matching_selectors(name)):
        names = [*bindable_names(), *registries]
        raise ValueError(f"no component or configurable function is named {name!r}{did_you_mean(name, names)}")
    if len(selectors) > 1:
        raise ValueError(f"{name!r} is ambiguous: write one of {', '.join(sorted(selectors))}")
    return registry[selectors[0]]


def bindable(key: str) -> bool:
    """Return whether a value can be bound to 'function.argument'."""
    try:
        return bool(canonical(key))
    except ValueError:
        return False


def bindable_names() -> list[str]:
    """Return all names of configurables that gin files may use."""
    selectors = [info.selector for _, info in gin.config._REGISTRY.items() if not info.selector.startswith("gin.")]
    return sorted({name for s in selectors for name in (s, s.split(".", 1)[-1], s.rsplit(".", 1)[-1])})


@contextmanager
def explained(types: bool = False) -> Iterator[None]:
    """Turn the TypeError of a missing argument, in this context, into a ValueError that names the binding.

    With `types`, every other TypeError becomes a ValueError too.
    """
    try:
        yield
    except TypeError as error:
        missing = r"missing \d+ required .*arguments?: (.+)(?:\n.*)*?\n  In call to configurable '(\S+)'"
        match = re.search(missing, str(error))
        if not match and types:
            raise ValueError(f"a bound value has the wrong type, or must be inside a list: {error}") from error
        if not match:
            raise
        names = re.findall(r"'(\w+)'", match[1])
        if set(names) <= set(gin.config._REGISTRY.get_match(match[2]).denylist or ()):
            what = f"{match[2]} is called by the library, which supplies {', '.join(names)}"
            raise ValueError(f"{what}: bind it without parentheses, as @{match[2]}") from error
        required = " and ".join(f"{match[2]}.{name}" for name in names)
        raise ValueError(f"{required} must be bound: there is no default") from error


def explanation(error: Exception) -> str:
    """Return the message of an error of gin, shortened, with the nearest valid name."""
    text = str(error).strip()
    what, _, where = text.partition("\n")
    if isinstance(error, SyntaxError):
        token = re.search(r"Failed to parse token '(.+)'", error.msg)
        what = f"{token[1]} is not a value: {MARKS}" if token else error.msg
        if what.startswith("Unable to parse value"):
            what = f"this value cannot be parsed: {MARKS}"
        return f"{what}\n  In {error.filename or 'the bindings'}, line {error.lineno}\n    {error.text or ''}".rstrip()
    if match := re.search(r"No bindings specified for '(\S+)/(?:gin\.)?macro'", text):
        macros = [scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"]
        lines = statements(gin.config_str()).items()
        used = [f"\n    {key} = {value}" for key, value in lines if re.search(rf"%{match[1]}\b", value)]
        return f"the macro %{match[1]} is used but not set{did_you_mean(match[1], macros)}{''.join(used)}"
    if match := re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", text):
        return f"{what.rstrip('.')}{did_you_mean(match[1].split('/')[-1], bindable_names())}\n{where}"
    if match := re.search(r"'([\w./]+)' doesn't have a parameter named '(\w+)'", text):
        info = gin.config._REGISTRY.get_match(match[1].split("/")[-1])
        names = [name for name in inspect.signature(info.wrapped).parameters if name not in (info.denylist or ())]
        allowed = f"parameters of {match[1]}: {', '.join(names) or 'none'}{did_you_mean(match[2], names)}"
        return f"{what}\n{where}\n  {allowed}"
    if match := re.search(r"'([\w./]+)' has denylisted kwarg '(\w+)'", text):
        return f"{match[1]}.{match[2]} is supplied by the library and cannot be bound\n{where}".rstrip()
    return text
