"""Parse, query, save and compare gin configurations."""

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

__all__ = ["bindable", "canonical", "config_dir", "explained", "statements"]  # re-exported

# (scope, selector, argument) of the user's bindings: on the command line, and in named files that are not shipped.
of_user: set[tuple[str, str, str]] = set()


def parse(
    gin_files: Sequence[str | Path] = (), gin_bindings: Sequence[str] = (), *, saved: Sequence[Path] = ()
) -> None:
    """Replace gin's configuration by that of gin files and bindings.

    Files are searched in the current folder, then among the shipped ones. The modules that these
    files import are trusted from then on: a saved configuration read later may import them, too.

    Args:
        gin_files: paths or names of gin files.
        gin_bindings: bindings, such as "PCA.rank = 8". They take precedence over files.
        saved: saved configurations of a run folder, read first. They may import only modules that
            `redi.runtime.trusted_imports` allows, and must not include other files.

    Raises:
        ValueError: an unknown file, configurable, parameter or macro (with the nearest valid name), a value that its
            argument does not accept or that gin cannot write, or an import that is not allowed.
    """
    texts = [read_saved(path) for path in saved]
    gin.clear_config()
    of_user.clear()
    try:
        for text in texts:
            source = text.name
            gin.parse_config(text)
        with GinFiles(of_user):
            for source in gin_files:  # noqa: B007 - used in messages below
                gin.parse_config_file(str(source))
            source = "the bindings"
            gin.parse_config(list(gin_bindings))
        gin.finalize()
        trusted_imports.trusted.update(statement.module for statement in gin.config._IMPORTS)
    except (tokenize.TokenError, StopIteration):
        raise ValueError(f"a bracket or string in {source} is not closed: close it") from None
    except RecursionError:
        raise ValueError(f"{source} is not a gin file: its brackets are nested too deeply") from None
    except (ValueError, OSError, SyntaxError, ImportError) as error:
        raise ValueError(explanation(error)) from None
    check_values(of_user if saved else None)  # saved bindings may be of an older version, so they are not checked


def read_saved(path: str | Path):
    """Open a saved configuration as text for gin. Raises ValueError if it imports modules that are not allowed."""
    modules = {component.__module__ for registry in registries.values() for component in registry.values()}
    return trusted_imports.read(path, modules)


def call(function: Callable, **arguments: Any) -> Any:
    """Call a configurable function with its bindings. `arguments` take precedence over bindings.

    Raises ValueError for an argument without default and binding.
    """
    selector = gin.config._INVERSE_REGISTRY[function].selector
    bindings = gin.config._CONFIG.get(("", selector), {})
    # Removed during the call: gin would build the bound objects, such as a data set, and then discard them.
    unused = {name: bindings.pop(name) for name in arguments if name in bindings}
    try:
        with explained():
            return gin.get_configurable(function)(**arguments)
    finally:
        gin.config._CONFIG.setdefault(("", selector), {}).update(unused)


def bound(name: str, default: Any = None) -> Any:
    """Return the value bound to 'function.argument', with references built. Raises ValueError as `call` does."""
    with explained():
        return copy.deepcopy(unevaluated(name, default))  # deepcopy makes gin build references


def unevaluated(name: str, default: Any = None) -> Any:
    """Return the value bound to 'function.argument' without building references. Its repr is gin text."""
    try:
        return gin.query_parameter(name)
    except ValueError:  # unbound
        return default


def is_bound(name: str, default: bool = False) -> bool:
    """Return whether 'function.argument' is bound to a value other than None, without building it.

    `default` is the answer for an unbound argument.
    """
    return unevaluated(name, default or None) is not None


def bindings() -> dict[str, Any]:
    """Return {name: value} of all bindings and macros, without building references."""
    owners = gin.config._CONFIG.items()
    return {
        binding_name(scope, selector, name): value
        for (scope, selector), values in owners
        for name, value in values.items()
    }


def text_without(function: Callable) -> str:
    """Return the configuration as a gin file, without the bindings of one function."""
    selector = gin.config._INVERSE_REGISTRY[function].selector
    return gin.config._config_str({key: value for key, value in gin.config._CONFIG.items() if key[1] != selector})


def full_text() -> str:
    """Return all bindings as a gin file that parses to the same configuration."""
    return gin.config_str()


def text_for(roots: Sequence[Callable], exclude: Callable[[str], Any]) -> str:
    """Return the bindings that calls of these functions can use, as a gin file. `exclude` selects bindings to omit."""
    reached, used = _reached(roots, exclude), {}
    for (scope, selector), parameters in gin.config._CONFIG.items():
        values = {name: value for name, value in parameters.items() if not exclude(f"{short(selector)}.{name}")}
        if values and (scope, selector) in reached:
            used[scope, selector] = values
    return gin.config._config_str(used)


def operative_text() -> str:
    """Return the bindings and defaults of all functions called so far, and of their references, as a gin file."""
    called, bound = gin.config._OPERATIVE_CONFIG, gin.config._CONFIG
    roots = [function for function in entry_points if ("", gin.config._INVERSE_REGISTRY[function].selector) in called]
    # gin omits arguments that the programs pass, such as train.codec.
    keys = {*called, *(_reached(roots) & bound.keys())}
    return gin.config._config_str({key: bound.get(key, {}) | called.get(key, {}) for key in keys})


@contextmanager
def isolated() -> Iterator[None]:
    """Provide a context for parsing another configuration. The previous one is restored on exit."""
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
    """Return lines 'binding: saved -> now' for differences from a saved configuration that affect these functions."""
    old, new = (relevant(text, roots, exclude=may_change) for text in (saved, full_text()))
    differing = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key, '(not bound)')} -> {new.get(key, '(not bound)')}" for key in differing]


def relevant(
    text: str, roots: Sequence[Callable | str], exclude: Callable[[str], bool] | None = None
) -> dict[str, str]:
    """Return the statements of a saved configuration that affect the results of these functions.

    `exclude` selects bindings to leave out, by default the harmless ones (see `is_harmless`).
    """
    exclude = exclude or is_harmless
    owners = {f"{scope}/{short(selector)}".lstrip("/") for scope, selector in _reached(roots, exclude)}
    values = statements(text)
    owner = {key: key.rsplit(".", 1)[0] if "." in key else f"{key}/macro" for key in values}
    return {key: value for key, value in values.items() if owner[key] in owners and not exclude(key)}


def plug_ins_of(roots: Sequence[Callable | str]) -> dict[str, str | None]:
    """Return the `plug_ins` that calls of these functions use, without those of harmless arguments."""
    selectors = {selector for _, selector in _reached(roots, is_harmless)}
    return plug_ins(*(gin.config._REGISTRY[selector].wrapped for selector in selectors))


def key(roots: Sequence[Callable | str]) -> dict[str, Any]:
    """Return all that determines the results of these functions: `relevant` bindings, and hashes of plug-ins."""
    sources = plug_ins_of(roots)
    return relevant(full_text(), roots) | ({"plug-ins": sources} if sources else {})


def without_effect(roots: Sequence[Callable], *, among: Collection[tuple] | None = None) -> list[str]:
    """Return the bindings that no call of these functions uses, such as unused macros or mistyped scopes.

    `among` restricts the result, for example to the bindings `of_user`.
    """
    reached = _reached(roots)
    bound = [(*owner, name) for owner, parameters in gin.config._CONFIG.items() for name in parameters]
    unused = [each for each in bound if each[:2] not in reached and (among is None or each in among)]
    return sorted(binding_name(*each) for each in unused)


def may_change(key: str) -> bool:
    """Return whether a resumed run may change the binding, because it is harmless or compared by content."""
    return is_harmless(key) or _is_among(arguments_by_content, key)


def is_harmless(key: str) -> bool:
    """Return whether the binding 'scope/Component.argument' does not affect what is learned (see `configurable`)."""
    return _is_among(harmless_arguments, key)


def _is_among(arguments: dict[str, tuple[str, ...]], key: str) -> bool:
    owner, _, argument = key.rpartition(".")
    try:
        info = gin.config._REGISTRY.get_match(owner.rpartition("/")[2])
    except (KeyError, ValueError):  # the name is ambiguous
        return False
    return info is not None and argument in arguments.get(info.selector, ())


def _reached(roots: Sequence[Callable | str], exclude: Callable[[str], Any] | None = None) -> set[tuple[str, str]]:
    """Return (scope, selector) of all bindings that calls of the roots can use.

    A root 'function.argument' stands for its bound value. References in parameters that `exclude` selects are skipped.
    """
    values = [unevaluated(root) for root in roots if isinstance(root, str)]
    pending = [reference.config_key for reference in iterate_references(values)]
    pending += [("", gin.config._INVERSE_REGISTRY[root].selector) for root in roots if not isinstance(root, str)]
    reached = set()
    for scope, selector in pending:  # the list grows during the loop
        # A call in scope 'a/b' uses the bindings of 'a/b', 'a' and ''.
        for outer in {"", *accumulate(scope.split("/"), "{}/{}".format)}:
            reached.add((outer, selector))
            parameters = gin.config._CONFIG.get((outer, selector), {})
            followed = {k: v for k, v in parameters.items() if not (exclude and exclude(f"{short(selector)}.{k}"))}
            for reference in iterate_references(followed):
                # An unscoped reference is called in the scope of its caller.
                key = ("/".join(reference.scopes) or scope, reference.configurable.selector)
                if key not in pending:
                    pending.append(key)
    return reached
