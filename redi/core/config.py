"""gin in one place: parsing, calling configured functions, saving and comparing configurations."""

import copy
import inspect
import logging
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import gin
from gin.config import iterate_references

from redi.core.plug_ins import plug_ins
from redi.core.registry import harmless_arguments, registries
from redi.runtime import trusted_imports
from redi.runtime.spelling import did_you_mean


def config_dir() -> Path:
    """The folder of the shipped gin files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if (installed / "base.gin").exists() else package.parent / "gin"


def parse(
    gin_files: Sequence[str | Path] = (), gin_bindings: Sequence[str] = (), *, found: Sequence[Path] = ()
) -> None:
    """Replace gin's configuration by these files (of the current folder, or shipped) and then these bindings.

    What they import, saved configurations may import from now on.

    Args:
        found: files in a folder that the user named, not named themselves; read first. They may import only what
            `redi.runtime.trusted_imports` lets in, and include nothing.

    Raises ValueError for an unknown file, configurable, parameter or macro, with the nearest valid name, and for a
    found file that would import what nobody has named.
    """
    texts = [read_saved(path) for path in found]
    gin.clear_config()
    if str(config_dir()) not in gin.config._LOCATION_PREFIXES:
        gin.add_config_file_search_path(str(config_dir()))
    muted = logging.root.manager.disable
    logging.disable(logging.ERROR)  # gin logs an error for every place where it looks for a file in vain
    try:
        for text in texts:
            source = text.name
            gin.parse_config(text)
        for source in gin_files:  # noqa: B007 - for the message below
            gin.parse_config_file(str(source))
        source = "the bindings"
        gin.parse_config(list(gin_bindings))
        gin.finalize()
        trusted_imports.named.update(statement.module for statement in gin.config._IMPORTS)
    except (tokenize.TokenError, StopIteration):
        raise ValueError(f"a bracket or a string in {source} is never closed") from None
    except RecursionError:
        raise ValueError(f"{source} is no configuration: its brackets are nested too deeply") from None
    except (ValueError, OSError, SyntaxError, ImportError) as error:
        raise ValueError(_explain(error)) from None
    finally:
        logging.disable(muted)


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


def canonical(key: str) -> str:
    """A binding's key as saved configurations have it: 'reducers.PCA.rank' -> 'PCA.rank'.

    Raises ValueError where nothing can be bound to it.
    """
    if "." not in key:  # a macro
        return key
    scope, _, selector, argument = gin.config.ParsedBindingKey.parse(key)
    return f"{scope}/{_short(selector)}.{argument}".lstrip("/")


def bindable(key: str) -> bool:
    """Whether something can be bound to 'function.argument'."""
    try:
        return bool(canonical(key))
    except ValueError:
        return False


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
        own = {name: value for name, value in parameters.items() if not but(f"{_short(selector)}.{name}")}
        if own and (scope, selector) in reached:
            kept[scope, selector] = own
    return gin.config._config_str(kept)


def operative_text() -> str:
    """The bindings and defaults of everything called so far."""
    return gin.operative_config_str()


@contextmanager
def isolated() -> Iterator[None]:
    """Context in which another configuration can be parsed; the one before comes back at the end."""
    text, locked, operative = gin.config_str(), gin.config_is_locked(), gin.config._OPERATIVE_CONFIG.copy()
    try:
        yield
    finally:
        gin.clear_config()
        gin.parse_config(text)
        gin.config._OPERATIVE_CONFIG.update(operative)
        if locked:
            gin.finalize()


def conflicts(saved: str, roots: Sequence[Callable]) -> list[str]:
    """Lines 'binding: saved -> now' for the differences from a saved configuration that reach these functions."""
    old, new = relevant(saved, roots), relevant(full_text(), roots)
    differing = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key, '(not bound)')} -> {new.get(key, '(not bound)')}" for key in differing]


def statements(text: str) -> dict[str, str]:
    """A saved configuration as {binding: value}, macros included; layout and comments do not matter."""
    found: dict[str, str] = {}
    key = None
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line[0].isspace() and key:
            found[key] += " " + line.strip()
        elif " = " in line:
            key, value = line.split(" = ", 1)
            found[key] = value.removesuffix("\\").strip()
        else:
            found[line] = ""  # an import
    return {key: " ".join(value.split()) for key, value in found.items()}


def relevant(text: str, roots: Sequence[Callable | str]) -> dict[str, str]:
    """The statements of a saved configuration that decide what these functions compute, harmless ones left out."""
    matters = {f"{scope}/{_short(selector)}".lstrip("/") for scope, selector in _reached(roots, but=is_harmless)}
    values = statements(text)
    owner = {key: key.rsplit(".", 1)[0] if "." in key else f"{key}/macro" for key in values}
    return {key: value for key, value in values.items() if owner[key] in matters and not is_harmless(key)}


def plug_ins_of(roots: Sequence[Callable | str]) -> dict[str, str | None]:
    """The `plug_ins` among all that calls of these functions use, harmless ones left out."""
    selectors = {selector for _, selector in _reached(roots, but=is_harmless)}
    return plug_ins(*(gin.config._REGISTRY[selector].wrapped for selector in selectors))


def key(roots: Sequence[Callable | str]) -> dict[str, Any]:
    """What the results of these functions depend on: `relevant` bindings and `plug_ins_of`."""
    sources = plug_ins_of(roots)
    return relevant(full_text(), roots) | ({"plug-ins": sources} if sources else {})


def without_effect(roots: Sequence[Callable]) -> list[str]:
    """Bindings that no call of these functions reaches through references: mistyped scopes, unused macros,
    components that are configured but bound nowhere."""
    reached = _reached(roots)
    unused = []
    for (scope, selector), parameters in gin.config._CONFIG.items():
        if (scope, selector) not in reached:
            owner = f"{scope}/{_short(selector)}".lstrip("/")
            unused += [scope if selector == "gin.macro" else f"{owner}.{name}" for name in parameters]
    return sorted(unused)


def is_harmless(key: str) -> bool:
    """Whether a resumed run may change the binding 'scope/Component.argument' (see `configurable`)."""
    owner, _, argument = key.rpartition(".")
    try:
        info = gin.config._REGISTRY.get_match(owner.rpartition("/")[2])
    except (KeyError, ValueError):  # several components of that name
        return False
    return info is not None and argument in harmless_arguments.get(info.selector, ())


def _reached(roots: Sequence[Callable | str], but: Callable[[str], Any] | None = None) -> set[tuple[str, str]]:
    """(scope, selector) of all bindings that calling the roots can use; not through parameters that `but` takes.
    A root 'function.argument' is what is bound to it."""
    bound_to = [unevaluated(root) for root in roots if isinstance(root, str)]
    pending = [reference.config_key for reference in iterate_references(bound_to)]
    pending += [("", gin.config._INVERSE_REGISTRY[root].selector) for root in roots if not isinstance(root, str)]
    reached = set()
    for scope, selector in pending:  # grows while it is walked
        # A call in scope 'a/b' takes the bindings of 'a/b', 'a' and ''.
        for outer in {"", *accumulate(scope.split("/"), "{}/{}".format)}:
            reached.add((outer, selector))
            parameters = gin.config._CONFIG.get((outer, selector), {})
            followed = {k: v for k, v in parameters.items() if not (but and but(f"{_short(selector)}.{k}"))}
            for reference in iterate_references(followed):
                # An unscoped reference is called in the scope of its caller.
                key = ("/".join(reference.scopes) or scope, reference.configurable.selector)
                if key not in pending:
                    pending.append(key)
    return reached


def _short(selector: str) -> str:
    return gin.config._REGISTRY.minimal_selector(selector)


@contextmanager
def explained(types: bool = False) -> Iterator[None]:
    """Context for building bound classes: a missing argument raises a ValueError that names the binding.

    Args:
        types: explain every other TypeError too, as a value of the wrong type.
    """
    try:
        yield
    except TypeError as error:
        missing = r"missing \d+ required .*arguments?: (.+)(?:\n.*)*?\n  In call to configurable '(\S+)'"
        match = re.search(missing, str(error))
        if not match and types:
            raise ValueError(f"a bound value is of the wrong type, or a list is missing around it: {error}") from error
        if not match:
            raise
        names = re.findall(r"'(\w+)'", match[1])
        if set(names) <= set(gin.config._REGISTRY.get_match(match[2]).denylist or ()):
            what = f"{match[2]} is built by the library, which supplies {', '.join(names)}"
            raise ValueError(f"{what}: refer to it without parentheses, as @{match[2]}") from error
        needed = " and ".join(f"{match[2]}.{name}" for name in names)
        raise ValueError(f"nothing is bound to {needed}, which has no default") from error


def _explain(error: Exception) -> str:
    """gin's message, shortened to what concerns the user, with the nearest valid name."""
    text = str(error).strip()
    what, _, where = text.partition("\n")
    if isinstance(error, SyntaxError):
        token = re.search(r"Failed to parse token '(.+)'", error.msg)
        what = f"{token[1]} is no value: text needs quotes, a component @, a macro %" if token else error.msg
        return f"{what}\n  In {error.filename or 'the bindings'}, line {error.lineno}\n    {error.text or ''}".rstrip()
    if match := re.search(r"No bindings specified for '(\S+)/(?:gin\.)?macro'", text):
        macros = [scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"]
        used = [f"\n    {k} = {v}" for k, v in statements(full_text()).items() if re.search(rf"%{match[1]}\b", v)]
        return f"the macro %{match[1]} is used but never set{did_you_mean(match[1], macros)}{''.join(used)}"
    if match := re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", text):
        return f"{what.rstrip('.')}{did_you_mean(match[1].split('/')[-1], _bindable_names())}\n{where}"
    if match := re.search(r"'([\w./]+)' doesn't have a parameter named '(\w+)'", text):
        info = gin.config._REGISTRY.get_match(match[1].split("/")[-1])
        known = [name for name in inspect.signature(info.wrapped).parameters if name not in (info.denylist or ())]
        takes = f"{match[1]} takes {', '.join(known) or 'no parameters'}{did_you_mean(match[2], known)}"
        return f"{what}\n{where}\n  {takes}"
    if match := re.search(r"'([\w./]+)' has denylisted kwarg '(\w+)'", text):
        return f"{match[1]}.{match[2]} is supplied by the library and cannot be bound\n{where}".rstrip()
    if match := re.match(r"Unable to open file: (.+)\. Searched config paths", text):
        shipped = sorted(str(path.relative_to(config_dir())) for path in config_dir().rglob("*.gin"))
        nearest = did_you_mean(match[1], shipped)
        what = f"no gin file {match[1]}, neither here nor among the shipped ones ({', '.join(shipped)}){nearest}"
        return f"{what}\n{where}".rstrip()
    return text


def _bindable_names() -> list[str]:
    selectors = [info.selector for _, info in gin.config._REGISTRY.items() if not info.selector.startswith("gin.")]
    return sorted({name for s in selectors for name in (s, s.split(".", 1)[-1], s.rsplit(".", 1)[-1])})
