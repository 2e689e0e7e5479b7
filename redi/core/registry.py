"""Registries: what can be swapped, under which names, behind which interface.

A kind of component (encoders, reducers, ...) is a package with an interface class and one `Registry`. A decorator
lists a component and makes it known to gin as `<kind>.<ClassName>`; the class stays untouched, and works without gin.
"""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial

import gin

import redi
from redi.core.plug_ins import source_sha256
from redi.runtime.spelling import did_you_mean

if not hasattr(gin, "register"):
    # A folder called gin/ on sys.path imports as an empty namespace package where gin-config is missing.
    raise ImportError("`import gin` found a folder instead of the package gin-config: pip install gin-config")

registries: dict[str, "Registry"] = {}


class Registry(Mapping[str, type]):
    """The components of one kind, by class name.

    Args:
        kind: plural name; also the module under which gin knows the components (`reducers.PCA`).
        interface: the class that every component must derive from.
        runtime: constructor arguments that the library supplies; gin refuses bindings to them.
        may_change: constructor arguments that a resumed run may change, as `harmless` or `by_content` (see
            `configurable`).
    """

    def __init__(self, kind: str, interface: type, runtime: tuple[str, ...] = (), **may_change: tuple[str, ...]):
        self.kind, self.interface, self.runtime, self.may_change = kind, interface, runtime, may_change
        self.components: dict[str, type] = {}
        registries[kind] = self

    def register(self, component: type) -> type:
        """Class decorator: lists the component, makes it bindable in gin, returns it unchanged."""
        if not (inspect.isclass(component) and issubclass(component, self.interface)):
            raise TypeError(f"{component!r} cannot join {self.kind}: it does not derive from {self.interface.__name__}")
        name = component.__name__
        known = self.components.get(name)
        if known and (known.__module__, known.__qualname__) != (component.__module__, component.__qualname__):
            raise ValueError(f"{self.kind} already has a {name}, from {known.__module__}: choose another class name")
        configurable(component, module=self.kind, runtime=self.runtime, **self.may_change)
        self.components[name] = component
        return component

    def check(self, value: object, binding: str) -> None:
        """Raises ValueError, which names the `binding`, unless `value` is an instance of this kind's interface."""
        if not isinstance(value, self.interface):
            self._refuse(value, binding, parentheses="()")

    def check_class(self, value: object, binding: str) -> None:
        """Raises ValueError unless `value` is a class (or gin reference without parentheses) of this kind."""
        if not (inspect.isclass(value) and issubclass(value, self.interface)):
            self._refuse(value, binding, parentheses="")

    def _refuse(self, value: object, binding: str, parentheses: str) -> None:
        cls = value if inspect.isclass(value) else type(value)
        kinds = [r.kind for r in registries.values() if issubclass(cls, r.interface)]
        what = f"{cls.__name__}, which is of kind {kinds[0]}" if kinds else repr(value)
        example = next(iter(self), "Name")
        if issubclass(cls, self.interface):  # the right kind, but a class for an object or the reverse
            what, example = f"{'the class' if cls is value else 'an object of'} {cls.__name__}", cls.__name__
        example = f"{self.kind}.{example}{parentheses}"
        raise ValueError(
            f"{binding} takes one of {self.kind} ({', '.join(self)}) but got {what}. "
            f"For example: {binding} = {example}, in a gin file @{example}"
        )

    def __getitem__(self, name: str) -> type:
        try:
            return self.components[name]
        except KeyError:
            raise KeyError(f"no {name!r} among {self.kind}: {', '.join(self)}{did_you_mean(name, self)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.components))

    def __len__(self) -> int:
        return len(self.components)


harmless_arguments: dict[str, tuple[str, ...]] = {}  # {gin selector: arguments that a resumed run may change}
arguments_by_content: dict[str, tuple[str, ...]] = {}  # {gin selector: arguments whose content is compared instead}
entry_points: list[Callable] = []  # the configurable functions that programs call
training_entry_points: list[Callable] = []  # those whose bindings decide what is learned


def configurable(
    target=None, *, module: str = "redi", runtime: tuple[str, ...] = (), harmless: tuple[str, ...] = (),
    by_content: tuple[str, ...] = (), entry=False, trains=False,
):  # fmt: skip
    """Decorator: makes a function or class known to gin as `<module>.<name>` and returns it unchanged; once more too,
    where a notebook cell is run again.

    Args:
        runtime: arguments that the library supplies; gin refuses bindings to them.
        harmless: arguments that a resumed run may change: they do not decide what is learned.
        by_content: those that it may change because what they lead to is compared, as the images of a folder.
        entry: programs call this function; what it refers to is in use (see `entry_points`).
        trains: its bindings decide what is learned (see `training_entry_points`); implies `entry`.
    """
    if target is None:
        return partial(
            configurable, module=module, runtime=runtime, harmless=harmless, by_content=by_content, entry=entry,
            trains=trains,
        )  # fmt: skip
    selector, parameters = f"{module}.{target.__name__}", inspect.signature(target).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    denylist = [argument for argument in runtime if takes_any or argument in parameters]
    known = gin.config._REGISTRY[selector].wrapped if selector in gin.config._REGISTRY else None
    again = known and (known.__module__, known.__qualname__) == (target.__module__, target.__qualname__)
    with gin.unlock_config(), gin.config.interactive_mode() if again else nullcontext():
        gin.register(module=module, denylist=denylist or None)(target)
    harmless_arguments[selector], arguments_by_content[selector] = harmless, by_content
    source_sha256(target)  # before its file can be edited
    if entry or trains:
        entry_points.append(target)
    if trains:
        training_entry_points.append(target)
    return target


def identity(component: object) -> dict[str, str]:
    """Which code a component is, as JSON, for the keys of caches: class, library version, and of a plug-in the hash of
    its module's source (see `source_sha256`).
    """
    cls = type(component)
    known = {"class": f"{cls.__module__}.{cls.__qualname__}", "redi": redi.__version__}
    return known | ({"source_sha256": source} if (source := source_sha256(cls)) else {})


def discover(package: str, registry: Registry) -> None:
    """Imports every module of a package, so that a component file is found by being there, and offers the
    components as attributes of the package (`from redi.fusion import Merged`).
    """
    namespace = sys.modules[package]
    for module in pkgutil.iter_modules(namespace.__path__):
        importlib.import_module(f"{package}.{module.name}")
    for name, component in registry.items():
        setattr(namespace, name, component)
