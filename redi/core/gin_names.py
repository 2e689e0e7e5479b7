"""Names in gin files: of what gin can configure, and of bindings."""

import gin

from redi.core.registry import registries
from redi.runtime.spelling import did_you_mean


def binding_name(scope: str, selector: str, argument: str) -> str:
    """A binding as saved configurations have it: 'scope/PCA.rank', or the name of a macro."""
    return scope if selector == "gin.macro" else f"{scope}/{short(selector)}.{argument}".lstrip("/")


def short(selector: str) -> str:
    """The shortest name of something that gin can configure."""
    return gin.config._REGISTRY.minimal_selector(selector)


def canonical(key: str) -> str:
    """A binding's key as saved configurations have it: 'reducers.PCA.rank' -> 'PCA.rank'.

    Raises ValueError where nothing can be bound to it.
    """
    if "." not in key:  # a macro
        return key
    return binding_name(*gin.config.ParsedBindingKey.parse(key).scope_selector_arg)


def find(name: str):
    """gin's record of what is called `name` in gin files. Raises ValueError: nothing is, or several things."""
    registry = gin.config._REGISTRY
    if not (selectors := registry.matching_selectors(name)):
        known = [*bindable_names(), *registries]
        raise ValueError(f"nothing that gin can configure is called {name!r}{did_you_mean(name, known)}")
    if len(selectors) > 1:
        raise ValueError(f"{name!r} is the name of several: {', '.join(sorted(selectors))}")
    return registry[selectors[0]]


def bindable(key: str) -> bool:
    """Whether something can be bound to 'function.argument'."""
    try:
        return bool(canonical(key))
    except ValueError:
        return False


def bindable_names() -> list[str]:
    """What gin can configure, under all the names that gin files may use."""
    selectors = [info.selector for _, info in gin.config._REGISTRY.items() if not info.selector.startswith("gin.")]
    return sorted({name for s in selectors for name in (s, s.split(".", 1)[-1], s.rsplit(".", 1)[-1])})
