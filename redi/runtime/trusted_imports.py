"""Which Python modules the config.gin of a run, or of a model from the hub, may import.

A module runs when it is imported. A gin file that the user names may import what it says; of these files only the
folder was named, so they may import modules of redi and what the user has named in this process (`named`). A file that
this user's own runs wrote may import what it says, too, as long as it lies where it was written: a hash of text and
folder lies in the user's home, which no folder brings along.
"""

import hashlib
import io
import logging
import os
import sys
import tokenize
from collections.abc import Collection
from pathlib import Path

from gin.config_parser import ConfigParser, ImportStatement, IncludeStatement

from redi.runtime.atomic import write_text

log = logging.getLogger(__name__)

MAX_BYTES = 2**24  # of a saved configuration; those of the largest sweeps have some 2**16

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
    file = read_text(path)
    refused = [statement for statement in loading(file) if not _is_allowed(statement, registered)]
    if refused and not _is_own(path, file.getvalue()):
        raise ValueError(_message(path, refused))
    return file


def write(path: Path, text: str) -> None:
    """Write a configuration that was parsed here, and note its hash as one of this user's own. Raises OSError."""
    write_text(path, text)
    if all(_is_among(statement, ("redi",)) for statement in loading(io.StringIO(text))):
        return
    try:
        mark = _mark(path, text)
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch()
    except (OSError, RuntimeError) as error:
        log.warning("later programs need --plugin to open %s: it cannot be noted as yours (%s)", path.parent, error)


def _is_own(path: str | os.PathLike, text: str) -> bool:
    """Whether `write` noted this text at this place, in a folder of this user's that nobody else may write to."""
    try:
        mark = _mark(path, text)
        folder = mark.parent.stat()
        return mark.exists() and not folder.st_mode & 0o022 and folder.st_uid == os.getuid()
    except (OSError, RuntimeError):
        return False


def _mark(path: str | os.PathLike, text: str) -> Path:
    """The file whose presence says that this text here is the user's own. Raises RuntimeError: there is no home."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    place = os.fsencode(Path(path).resolve().parent)
    return state / "redi" / "configurations" / hashlib.sha256(place + b"\0" + text.encode()).hexdigest()


def imported(path: str | os.PathLike) -> list[str]:
    """The modules that a configuration imports, as far as `name` takes them."""
    modules = [statement.module for statement in loading(read_text(path)) if isinstance(statement, ImportStatement)]
    return [module for module in modules if not module.startswith("__gin__")]


def read_text(path: str | os.PathLike) -> io.StringIO:
    """The text of a gin file, without a byte order mark. Raises ValueError where it is none."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes: that is no configuration")
    try:
        text = io.StringIO(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read())  # line ends as from open()
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is not UTF-8 text ({error.reason})"
        raise ValueError(f"{path} is not a gin file: {what}. Save it as UTF-8") from None
    text.name = str(path)
    return text


class _Inert:
    """For gin's parser: references and macros stay names."""

    def configurable_reference(self, scoped_name: str, evaluate: bool) -> str:
        return scoped_name

    macro = str


def loading(file: io.StringIO) -> list[ImportStatement | IncludeStatement]:
    """The statements that load something, found by gin's own parser: what it would do, and no spelling escapes."""
    try:
        statements = [*ConfigParser(file.getvalue(), _Inert())]
    except (tokenize.TokenError, SyntaxError, ValueError, TypeError, StopIteration, RecursionError) as error:
        raise ValueError(f"{getattr(file, 'name', 'the text')} is no gin file: {str(error)[:500]}") from None
    return [statement for statement in statements if isinstance(statement, ImportStatement | IncludeStatement)]


def _is_among(statement: ImportStatement | IncludeStatement, modules: Collection[str]) -> bool:
    """Whether it imports one of these modules, or what lies in them."""
    module = getattr(statement, "module", "")
    return any(f"{module}.".startswith(f"{known}.") for known in modules)


def _is_allowed(statement: ImportStatement | IncludeStatement, registered: Collection[str]) -> bool:
    if _is_among(statement, ("redi", *named)):
        return True
    module = getattr(statement, "module", None)
    return module in sys.modules and any(f"{name}.".startswith(f"{module}.") for name in registered)


def _message(path: str | os.PathLike, refused: list[ImportStatement | IncludeStatement]) -> str:
    texts = [s.format() if isinstance(s, ImportStatement) else f"include {s.filename!r}" for s in refused[:5]]
    said = ", ".join(repr(text[:100]) for text in texts) + (", ..." if len(refused) > 5 else "")
    packages = list(dict.fromkeys(getattr(statement, "module", "__gin__").split(".")[0] for statement in refused))
    if "__gin__" in packages:  # or an include
        advice = f"Read it, and if you trust it, name it: --gin_file={path}"
    else:
        flags = " ".join(f"--plugin={package}" for package in packages)
        advice = (
            f"Read it, and if you trust what it imports, say so: {flags}, or in Python plugins={packages}, or for all "
            f"that you run, REDI_PLUGINS={','.join(packages)} in the environment"
        )
    return f"{path} says {said}: that would run code of whoever wrote it, and you have not named it. {advice}"
