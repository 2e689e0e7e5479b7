"""gin in one place: parsing, calling configured functions, saving and comparing configurations."""

import copy
import inspect
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin
from gin.config import iterate_references

from redi.core.registry import did_you_mean

# Differences under which a run may go on: they decide how long, how often and where, not what is learned.
HARMLESS = re.compile(r"train\.(num_steps|\w+_every|keep_checkpoints|preview\w*|device)$|prepare\.(cache_dir|batch_size)$")


def config_dir() -> Path:
    """The folder of the shipped gin files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if (installed / "base.gin").exists() else package.parent / "gin"


def parse(gin_files: Sequence[str | Path] = (), gin_bindings: Sequence[str] = ()) -> None:
    """Replaces gin's configuration by these files (found in the current folder, then among the shipped ones) and
    then these bindings.

    Raises:
        ValueError: unknown file, configurable, parameter or macro, with the place and the nearest valid name.
    """
    gin.clear_config()
    gin.add_config_file_search_path(str(config_dir()))
    absl_log = logging.getLogger("absl")
    level = absl_log.level
    absl_log.setLevel(logging.CRITICAL)  # gin logs an error for every place where it looks for a file in vain
    try:
        for file in gin_files:
            gin.parse_config_file(str(file))
        gin.parse_config(list(gin_bindings))
        gin.finalize()
    except (ValueError, OSError, SyntaxError, ImportError) as error:
        raise ValueError(_explain(error)) from None
    finally:
        absl_log.setLevel(level)


def call(function: Callable, **arguments: Any) -> Any:
    """Calls a configurable function with its bindings; `arguments` take precedence over them."""
    return gin.get_configurable(function)(**arguments)


def bound(name: str, default: Any = None) -> Any:
    """The value that 'function.argument' is bound to, with references resolved as gin would for a call."""
    try:
        return copy.deepcopy(gin.query_parameter(name))
    except ValueError:  # nothing bound
        return default


def full_text() -> str:
    """Every binding, as a gin file that parses back to the same configuration."""
    return gin.config_str()


def operative_text() -> str:
    """The bindings and defaults of everything called so far."""
    return gin.operative_config_str()


class isolated:
    """Context in which another configuration can be parsed; the one before comes back at the end."""

    def __enter__(self):
        self.text, self.locked = gin.config_str(), gin.config_is_locked()

    def __exit__(self, *_):
        gin.clear_config()
        gin.parse_config(self.text)
        if self.locked:
            gin.finalize()


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


def conflicts(saved: str, roots: Sequence[Callable]) -> list[str]:
    """Lines 'binding: saved -> now' for the differences from a saved configuration that reach these functions."""
    matters = {f"{scope}/{_short(selector)}".lstrip("/") for scope, selector in _reached(roots, but=HARMLESS)}
    old, new = statements(saved), statements(full_text())
    lines = []
    for key in sorted(old | new):
        owner = key.rsplit(".", 1)[0] if "." in key else f"{key}/macro"
        if old.get(key) != new.get(key) and owner in matters and not HARMLESS.match(key):
            lines.append(f"{key}: {old.get(key, '(not bound)')} -> {new.get(key, '(not bound)')}")
    return lines


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


def _reached(roots: Sequence[Callable], but: re.Pattern | None = None) -> set[tuple[str, str]]:
    """(scope, selector) of all bindings that calling the roots can use; not through parameters that match `but`."""
    selector_of = {info.wrapped: info.selector for _, info in gin.config._REGISTRY.items()}
    pending = [("", selector_of[root]) for root in roots]
    reached = set()
    for scope, selector in pending:  # grows while it is walked
        for outer in _enclosing(scope):
            reached.add((outer, selector))
            parameters = gin.config._CONFIG.get((outer, selector), {})
            followed = {k: v for k, v in parameters.items() if not (but and but.match(f"{_short(selector)}.{k}"))}
            for reference in iterate_references(followed):
                # An unscoped reference is called in the scope of its caller.
                key = ("/".join(reference.scopes) or scope, reference.configurable.selector)
                if key not in pending:
                    pending.append(key)
    return reached


def _enclosing(scope: str) -> list[str]:
    """'a/b' -> '', 'a', 'a/b': a call in scope a/b takes the bindings of all three."""
    parts = scope.split("/")
    return [""] + ["/".join(parts[: depth + 1]) for depth in range(len(parts))] if scope else [""]


def _short(selector: str) -> str:
    return gin.config._REGISTRY.minimal_selector(selector)


def _explain(error: Exception) -> str:
    """gin's message, shortened to what concerns the user, with the nearest valid name."""
    text = str(error).strip()
    if match := re.search(r"No bindings specified for '(\S+)/(?:gin\.)?macro'", text):
        macros = [scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"]
        return f"the macro %{match[1]} is used but never set{did_you_mean(match[1], macros)}"
    if match := re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", text):
        return text + did_you_mean(match[1], _bindable_names())
    if match := re.search(r"'([\w./]+)' doesn't have a parameter named '(\w+)'", text):
        info = gin.config._REGISTRY.get_match(match[1].split("/")[-1])
        known = [name for name in inspect.signature(info.wrapped).parameters if name not in (info.denylist or ())]
        return f"{text}\n  {match[1]} takes {', '.join(known) or 'no parameters'}{did_you_mean(match[2], known)}"
    if match := re.search(r"'([\w./]+)' has denylisted kwarg '(\w+)'", text):
        where = text.split("\n", 1)[1] if "\n" in text else ""
        return f"{match[1]}.{match[2]} is supplied by the library and cannot be bound\n{where}".rstrip()
    if match := re.match(r"Unable to open file: (\S+)\. Searched config paths", text):
        shipped = sorted(str(path.relative_to(config_dir())) for path in config_dir().rglob("*.gin"))
        nearest = did_you_mean(match[1], shipped)
        return f"no gin file {match[1]}, neither here nor among the shipped ones ({', '.join(shipped)}){nearest}"
    return text


def _bindable_names() -> list[str]:
    selectors = [info.selector for _, info in gin.config._REGISTRY.items() if not info.selector.startswith("gin.")]
    return sorted({name for s in selectors for name in (s, s.split(".", 1)[-1], s.rsplit(".", 1)[-1])})
