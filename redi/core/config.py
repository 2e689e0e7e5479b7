"""gin in one place: parsing, calling configured functions, saving and comparing configurations."""

import copy
import tokenize
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import gin
from gin.config import iterate_references

from redi.core.gin_errors import bindable, binding_name, canonical, explained, explanation, short
from redi.core.gin_files import GinFiles, config_dir, statements
from redi.core.literals import check_values
from redi.core.plug_ins import plug_ins
from redi.core.registry import arguments_by_content, entry_points, harmless_arguments, registries
from redi.runtime import trusted_imports

__all__ = ["bindable", "canonical", "config_dir", "explained", "statements"]  # of the files beside

# (scope, selector, argument) of what the user bound: in files named by the user, not included or shipped, and by flags.
of_user: set[tuple[str, str, str]] = set()


def parse(
    gin_files: Sequence[str | Path] = (), gin_bindings: Sequence[str] = (), *, found: Sequence[Path] = ()
) -> None:
    """Replace gin's configuration by these files (of the current folder, or shipped) and then these bindings.

    What they import, saved configurations may import from now on.

    Args:
        found: files in a folder that the user named, not named themselves; read first. They may import only what
            `redi.runtime.trusted_imports` lets in, and include nothing.

    Raises ValueError for an unknown file, configurable, parameter or macro, with the nearest valid name, for a value
    that its argument does not take or that gin cannot write, and for a found file that would import what nobody has
    named.
    """
    texts = [read_saved(path) for path in found]
    gin.clear_config()
    of_user.clear()
    try:
        for text in texts:
            source = text.name
            gin.parse_config(text)
        with GinFiles(of_user):
            for source in gin_files:  # noqa: B007 - for the message below
                gin.parse_config_file(str(source))
            source = "the bindings"
            gin.parse_config(list(gin_bindings))
        gin.finalize()
        trusted_imports.trusted.update(statement.module for statement in gin.config._IMPORTS)
    except (tokenize.TokenError, StopIteration):
        raise ValueError(f"a bracket or a string in {source} is never closed") from None
    except RecursionError:
        raise ValueError(f"{source} is no configuration: its brackets are nested too deeply") from None
    except (ValueError, OSError, SyntaxError, ImportError) as error:
        raise ValueError(explanation(error)) from None
    check_values(of_user if found else None)  # older runs open with what they were made with


def read_saved(path: str | Path):
    """A saved configuration as text for gin. Raises ValueError: it would import what the user has not named."""
    modules = {component.__module__ for registry in registries.values() for component in registry.values()}
    return trusted_imports.read(path, modules)


def call(function: Callable, **arguments: Any) -> Any:
    """Call a configurable function with its bindings; `arguments` take precedence over them.

    Raises ValueError for an argument without a default that nothing binds.
    """
    selector = gin.config._INVERSE_REGISTRY[function].selector
    bindings = gin.config._CONFIG.get(("", selector), {})
    # gin would build what is bound to these arguments, the data set anew for example, only to discard it.
    unused = {name: bindings.pop(name) for name in arguments if name in bindings}
    try:
        with explained():
            return gin.get_configurable(function)(**arguments)
    finally:
        gin.config._CONFIG.setdefault(("", selector), {}).update(unused)


def bound(name: str, default: Any = None) -> Any:
    """The value that 'function.argument' is bound to, with references resolved; raises ValueError as `call`."""
    with explained():
        return copy.deepcopy(unevaluated(name, default))  # which makes gin build the references


def unevaluated(name: str, default: Any = None) -> Any:
    """As `bound`, with references left as they are: nothing is built, and the repr of the value is gin text."""
    try:
        return gin.query_parameter(name)
    except ValueError:  # nothing bound
        return default


def is_bound(name: str, default: bool = False) -> bool:
    """Whether something other than None is bound to 'function.argument'; nothing is built. `default`: if unbound."""
    return unevaluated(name, default or None) is not None


def text_without(function: Callable) -> str:
    """As `full_text`, less the bindings of this function."""
    selector = gin.config._INVERSE_REGISTRY[function].selector
    return gin.config._config_str({key: value for key, value in gin.config._CONFIG.items() if key[1] != selector})


def full_text() -> str:
    """Every binding, as a gin file that parses back to the same configuration."""
    return gin.config_str()


def text_for(roots: Sequence[Callable], but: Callable[[str], Any]) -> str:
    """As `full_text`, less the bindings for which `but` holds, and what calls of these functions then do not reach."""
    reached, kept = _reached(roots, but), {}
    for (scope, selector), parameters in gin.config._CONFIG.items():
        own = {name: value for name, value in parameters.items() if not but(f"{short(selector)}.{name}")}
        if own and (scope, selector) in reached:
            kept[scope, selector] = own
    return gin.config._config_str(kept)


def operative_text() -> str:
    """The bindings and defaults of everything called so far, and what these functions refer to, as a gin file."""
    called, bound = gin.config._OPERATIVE_CONFIG, gin.config._CONFIG
    roots = [function for function in entry_points if ("", gin.config._INVERSE_REGISTRY[function].selector) in called]
    # gin leaves out arguments that programs hand over, as train.codec, which they build themselves.
    keys = {*called, *(_reached(roots) & bound.keys())}
    return gin.config._config_str({key: bound.get(key, {}) | called.get(key, {}) for key in keys})


@contextmanager
def isolated() -> Iterator[None]:
    """Context in which another configuration can be parsed; the one before comes back at the end."""
    holders = (gin.config._CONFIG, gin.config._IMPORTS, gin.config._OPERATIVE_CONFIG, gin.config._SINGLETONS, of_user)
    before, locked = [copy.copy(holder) for holder in holders], gin.config_is_locked()
    try:
        yield
    finally:
        gin.clear_config()
        for holder, content in zip(holders, before, strict=True):
            holder.clear()
            holder.update(content)
        gin.config._set_config_is_locked(locked)


def conflicts(saved: str, roots: Sequence[Callable]) -> list[str]:
    """Lines 'binding: saved -> now' for the differences from a saved configuration that reach these functions."""
    old, new = (relevant(text, roots, but=may_change) for text in (saved, full_text()))
    differing = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key, '(not bound)')} -> {new.get(key, '(not bound)')}" for key in differing]


def relevant(text: str, roots: Sequence[Callable | str], but: Callable[[str], bool] | None = None) -> dict[str, str]:
    """The statements of a saved configuration that decide what these functions compute; `but`: those left out, by
    default harmless ones.
    """
    but = but or is_harmless
    matters = {f"{scope}/{short(selector)}".lstrip("/") for scope, selector in _reached(roots, but=but)}
    values = statements(text)
    owner = {key: key.rsplit(".", 1)[0] if "." in key else f"{key}/macro" for key in values}
    return {key: value for key, value in values.items() if owner[key] in matters and not but(key)}


def plug_ins_of(roots: Sequence[Callable | str]) -> dict[str, str | None]:
    """The `plug_ins` among all that calls of these functions use, harmless ones left out."""
    selectors = {selector for _, selector in _reached(roots, but=is_harmless)}
    return plug_ins(*(gin.config._REGISTRY[selector].wrapped for selector in selectors))


def key(roots: Sequence[Callable | str]) -> dict[str, Any]:
    """What the results of these functions depend on: `relevant` bindings and `plug_ins_of`."""
    sources = plug_ins_of(roots)
    return relevant(full_text(), roots) | ({"plug-ins": sources} if sources else {})


def without_effect(roots: Sequence[Callable], *, among: Collection[tuple] | None = None) -> list[str]:
    """Bindings that no call of these functions reaches through references: mistyped scopes, unused macros,
    components that are configured but bound nowhere. Given `of_user`: only those that the user wrote.
    """
    reached = _reached(roots)
    bound = [(*owner, name) for owner, parameters in gin.config._CONFIG.items() for name in parameters]
    unused = [each for each in bound if each[:2] not in reached and (among is None or each in among)]
    return sorted(binding_name(*each) for each in unused)


def may_change(key: str) -> bool:
    """Whether a resumed run may change the binding: it is harmless, or what it leads to is compared instead."""
    return is_harmless(key) or _is_among(arguments_by_content, key)


def is_harmless(key: str) -> bool:
    """Whether a resumed run may change the binding 'scope/Component.argument' (see `configurable`)."""
    return _is_among(harmless_arguments, key)


def _is_among(arguments: dict[str, tuple[str, ...]], key: str) -> bool:
    owner, _, argument = key.rpartition(".")
    try:
        info = gin.config._REGISTRY.get_match(owner.rpartition("/")[2])
    except (KeyError, ValueError):  # several components of that name
        return False
    return info is not None and argument in arguments.get(info.selector, ())


def _reached(roots: Sequence[Callable | str], but: Callable[[str], Any] | None = None) -> set[tuple[str, str]]:
    """(scope, selector) of all bindings that calling the roots can use; not through parameters that `but` takes.
    A root 'function.argument' is what is bound to it.
    """
    bound_to = [unevaluated(root) for root in roots if isinstance(root, str)]
    pending = [reference.config_key for reference in iterate_references(bound_to)]
    pending += [("", gin.config._INVERSE_REGISTRY[root].selector) for root in roots if not isinstance(root, str)]
    reached = set()
    for scope, selector in pending:  # grows while it is walked
        # A call in scope 'a/b' takes the bindings of 'a/b', 'a' and ''.
        for outer in {"", *accumulate(scope.split("/"), "{}/{}".format)}:
            reached.add((outer, selector))
            parameters = gin.config._CONFIG.get((outer, selector), {})
            followed = {k: v for k, v in parameters.items() if not (but and but(f"{short(selector)}.{k}"))}
            for reference in iterate_references(followed):
                # An unscoped reference is called in the scope of its caller.
                key = ("/".join(reference.scopes) or scope, reference.configurable.selector)
                if key not in pending:
                    pending.append(key)
    return reached
