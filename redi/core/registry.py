"""Registries of components, and configurable functions.

Each kind of component (encoders, reducers, ...) is a package with an interface class and a `Registry`. A decorator adds
a component to the registry and to gin, as `<kind>.<ClassName>`. It returns the class unchanged, which also works
without gin.
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
    # Without gin-config, a folder gin/ on sys.path is imported as an empty namespace package.
    raise ImportError("`import gin` imports a folder because gin-config is not installed: pip install gin-config")

registries: dict[str, "Registry"] = {}


class Registry(Mapping[str, type]):
    """The components of one kind, a mapping {class name: class}.

    Args:
        kind: plural name, and the module of the components in gin (`reducers.PCA`).
        interface: the class that every component must derive from.
        runtime, may_change: passed to `configurable`; `may_change` is its `harmless` and `by_content`.

    Examples:
        >>> from redi.core.processes import processes
        >>> list(processes), processes["VP"].__name__
        (['DDPM', 'FlowMatching', 'GVP', 'Shifted', 'VP'], 'VP')
    """

    def __init__(self, kind: str, interface: type, runtime: tuple[str, ...] = (), **may_change: tuple[str, ...]):
        self.kind, self.interface, self.runtime, self.may_change = kind, interface, runtime, may_change
        self.components: dict[str, type] = {}
        registries[kind] = self

    def register(self, component: type) -> type:
        """Add a component to the registry and to gin, and return it unchanged. Used as a class decorator."""
        if not (inspect.isclass(component) and issubclass(component, self.interface)):
            raise TypeError(f"{component!r} in {self.kind}: must derive from {self.interface.__name__}")
        name = component.__name__
        other = self.components.get(name)
        if other and (other.__module__, other.__qualname__) != (component.__module__, component.__qualname__):
            raise ValueError(f"{self.kind} already has a {name}, from {other.__module__}: choose another class name")
        configurable(component, module=self.kind, runtime=self.runtime, **self.may_change)
        self.components[name] = component
        return component

    def check(self, value: object, binding: str) -> None:
        """Raise ValueError, naming the `binding`, unless `value` is an instance of the interface of this kind."""
        if not isinstance(value, self.interface):
            self._refuse(value, binding, parentheses="()")

    def check_class(self, value: object, binding: str) -> None:
        """Raise ValueError unless `value` is a class of this kind, or a gin reference to one without parentheses.

        `functools.partial(Class, setting=...)` counts as its class.
        """
        value = value.func if isinstance(value, partial) else value
        if not (inspect.isclass(value) and issubclass(value, self.interface)):
            self._refuse(value, binding, parentheses="")

    def _refuse(self, value: object, binding: str, parentheses: str) -> None:
        cls = value if inspect.isclass(value) else type(value)
        kinds = [r.kind for r in registries.values() if issubclass(cls, r.interface)]
        what = f"{cls.__name__}, which is of kind {kinds[0]}" if kinds else repr(value)
        example = next(iter(self), "Name")
        if issubclass(cls, self.interface):  # the right kind, but a class instead of an object or the reverse
            what, example = f"{'the class' if cls is value else 'an object of'} {cls.__name__}", cls.__name__
        example = f"{self.kind}.{example}{parentheses}"
        raise ValueError(
            f"{binding} must be one of {self.kind} ({', '.join(self)}), got {what}. "
            f"For example: {binding} = {example}, in a gin file @{example}"
        )

    def __getitem__(self, name: str) -> type:
        try:
            return self.components[name]
        except KeyError:
            raise KeyError(f"no {name!r} in {self.kind}: {', '.join(self)}{did_you_mean(name, self)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.components))

    def __len__(self) -> int:
        return len(self.components)


harmless_arguments: dict[str, tuple[str, ...]] = {}  # {gin selector: arguments that a resumed run may change}
arguments_by_content: dict[str, tuple[str, ...]] = {}  # {gin selector: arguments whose content is compared instead}
entry_points: list[Callable] = []  # the configurable functions that programs call
training_entry_points: list[Callable] = []  # the entry points whose bindings affect the trained model


def configurable(
    target=None, *, module: str = "redi", runtime: tuple[str, ...] = (), harmless: tuple[str, ...] = (),
    by_content: tuple[str, ...] = (), entry=False, trains=False,
):  # fmt: skip
    """Register a function or class with gin as `<module>.<name>` and return it unchanged. Used as a decorator.

    The same name may be registered again, as when a notebook cell is rerun.

    Args:
        runtime: arguments that the library supplies. gin refuses to bind them.
        harmless: arguments that a resumed run may change, because they do not affect the trained model.
        by_content: arguments that a resumed run may change, because their content is compared instead of their value,
            such as the images of a folder.
        entry: whether programs call this function. Components that it refers to count as used (see `entry_points`).
        trains: whether its bindings affect the trained model (see `training_entry_points`). Implies `entry`.
    """
    if target is None:
        return partial(
            configurable, module=module, runtime=runtime, harmless=harmless, by_content=by_content, entry=entry,
            trains=trains,
        )  # fmt: skip
    selector, parameters = f"{module}.{target.__name__}", inspect.signature(target).parameters
    has_settings = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    denylist = [argument for argument in runtime if has_settings or argument in parameters]
    other = gin.config._REGISTRY[selector].wrapped if selector in gin.config._REGISTRY else None
    again = other and (other.__module__, other.__qualname__) == (target.__module__, target.__qualname__)
    with gin.unlock_config(), gin.config.interactive_mode() if again else nullcontext():
        gin.register(module=module, denylist=denylist or None)(target)
    harmless_arguments[selector], arguments_by_content[selector] = harmless, by_content
    source_sha256(target)  # cached now, before the file can be edited
    if entry or trains:
        entry_points.append(target)
    if trains:
        training_entry_points.append(target)
    return target


def identity(component: object) -> dict[str, str]:
    """Return class, library version and, for a plug-in, `source_sha256` of a component, as JSON for cache keys.

    Examples:
        >>> from redi.core.processes import VP
        >>> identity(VP())["class"]
        'redi.core.processes.vp.VP'
    """
    cls: type = type(component)
    record = {"class": f"{cls.__module__}.{cls.__qualname__}", "redi": redi.__version__}
    return record | ({"source_sha256": source} if (source := source_sha256(cls)) else {})


def discover(package: str, registry: Registry) -> None:
    """Import every module of a package, so that all component files are registered without a list of them.

    The components become attributes of the package: `from redi.fusion import Merged`.
    """
    namespace = sys.modules[package]
    for module in pkgutil.iter_modules(namespace.__path__):
        importlib.import_module(f"{package}.{module.name}")
    for name, component in registry.items():
        setattr(namespace, name, component)
