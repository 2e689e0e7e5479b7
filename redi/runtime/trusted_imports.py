"""Which Python modules the config.gin of a run, or of a model from the hub, may import.

A module runs when it is imported. A gin file that the user names may import what it says; of these files only the
folder was named, so they may import modules of redi and what the user has named in this process (`named`). A file that
this user's own runs wrote may import what it says, too: its hash lies in the user's home, which no folder brings along.
"""

import hashlib
import io
import logging
import os
import sys
import tokenize
from collections.abc import Collection
from pathlib import Path

from redi.runtime.atomic import write_text

log = logging.getLogger(__name__)

MAX_BYTES = 2**24  # of a saved configuration; those of the largest sweeps have some 2**16
WORDS = ("import", "from", "include")  # how statements begin that load something

named: set[str] = {name for name in os.environ.get("REDI_PLUGINS", "").split(",") if name}  # packages or modules


def name(*modules: str) -> None:
    """Lets configurations import these modules, and what lies in them, from now on. Raises ValueError: not a module."""
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")) or module.startswith("__gin__"):
            raise ValueError(f"{module!r} is no name of a Python module, as 'my_lab' or 'my_lab.reducing'")
    named.update(modules)


def read(path: str | os.PathLike, registered: Collection[str] = ()) -> io.StringIO:
    """A configuration that lies in a folder, as a file for gin: exactly the text that was looked through.

    Modules whose components are `registered` were imported before: importing them again runs nothing. What `write`
    wrote for this user may import what it says.

    Raises ValueError: it would import or include what nobody has named. Nothing has been imported.
    """
    text, lines = _text_and_lines(path)
    refused = [line for line in lines if not is_allowed(line, registered)]
    if refused and not _is_own(text):
        raise ValueError(_message(path, refused))
    file = io.StringIO(text)
    file.name = str(path)
    return file


def write(path: Path, text: str) -> None:
    """Write a configuration that was parsed here, and note its hash as one of this user's own. Raises OSError."""
    write_text(path, text)
    modules = map(_module, loading_lines(text))
    if all(module and module.split(".")[0] == "redi" for module in modules):
        return
    try:
        _mark(text).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _mark(text).touch()
    except (OSError, RuntimeError) as error:
        log.warning("later programs need --plugin to open %s: it cannot be noted as yours (%s)", path.parent, error)


def _is_own(text: str) -> bool:
    """Whether `write` noted this text, in a folder that is this user's and that nobody else may write to."""
    try:
        folder = _mark(text).parent.stat()
        return _mark(text).exists() and not folder.st_mode & 0o022 and folder.st_uid == os.getuid()
    except (OSError, RuntimeError):
        return False


def _mark(text: str) -> Path:
    """The file whose presence says that a text is the user's own. Raises RuntimeError for a user without a home."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    return state / "redi" / "configurations" / hashlib.sha256(text.encode()).hexdigest()


def imported(path: str | os.PathLike) -> list[str]:
    """The modules that a configuration imports, as far as `name` takes them."""
    modules = map(_module, _text_and_lines(path)[1])
    return [module for module in modules if module and not module.startswith("__gin__")]


def _text_and_lines(path: str | os.PathLike) -> tuple[str, list[list[str]]]:
    """The text of a configuration, and its `loading_lines`. Raises ValueError where it is not one."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes: that is no saved configuration")
    try:
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()  # line ends as open() gives them to gin
        return text, loading_lines(text)
    except (UnicodeDecodeError, tokenize.TokenError, SyntaxError) as error:
        raise ValueError(f"{path} is no gin file: {error}") from None


def loading_lines(text: str) -> list[list[str]]:
    """The tokens of every logical line with `import`, `from` or `include` in it.

    gin uses the same tokenizer, and a statement ends with a logical line: no spelling escapes. Raises
    tokenize.TokenError and SyntaxError.
    """
    lines: list[list[tokenize.TokenInfo]] = [[]]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            lines.append([])
        elif token.type not in (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT):
            lines[-1].append(token)
    loading = [line for line in lines if any(t.type == tokenize.NAME and t.string in WORDS for t in line)]
    return [[token.string for token in line] for line in loading]


def _module(line: list[str]) -> str | None:
    """The module of `import a.b`, `import a.b as c` or `from a import b`; None for whatever else."""
    if line[-2:-1] == ["as"]:
        line = line[:-2]
    if line[:1] == ["from"] and line[-2:-1] == ["import"]:
        line = [*line[:-2], ".", line[-1]]
    module = "".join(line[1:])
    whole = line[:1] in (["import"], ["from"]) and all(part.isidentifier() for part in module.split("."))
    return module if whole and not set(line[1:]) & set(WORDS) else None


def is_allowed(line: list[str], registered: Collection[str] = ()) -> bool:
    """Whether a line imports a module of redi, one that was named, or one that is `registered`."""
    module = _module(line)
    if module is None:
        return False
    if any(f"{module}.".startswith(f"{known}.") for known in ("redi", *named)):
        return True
    return module in sys.modules and any(f"{name}.".startswith(f"{module}.") for name in registered)


def _message(path: str | os.PathLike, refused: list[list[str]]) -> str:
    texts = [" ".join(line).replace(" . ", ".")[:100] for line in refused[:5]]
    said = ", ".join(map(repr, texts)) + (", ..." if len(refused) > 5 else "")
    modules = [_module(line) for line in refused]
    if None in modules or "__gin__.dynamic_registration" in modules:
        advice = f"Read it, and if you trust it, name it: --gin_file={path}"
    else:
        packages = list(dict.fromkeys(module.split(".")[0] for module in modules))
        flags = " ".join(f"--plugin={package}" for package in packages)
        advice = (
            f"Read it, and if you trust what it imports, say so: {flags}, or in Python plugins={packages}, or for all "
            f"that you run, REDI_PLUGINS={','.join(packages)} in the environment"
        )
    return f"{path} says {said}: that would run code of whoever wrote it, and you have not named it. {advice}"
