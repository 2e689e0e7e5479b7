"""Restrict which Python modules a saved config.gin, of a run or of a model from the hub, may import.

Importing a module runs its code. A gin file named on the command line may import any module. For a config.gin the user
names only the folder, so the file may import only modules of redi and modules that the user trusts (`trusted`). A file
written by this user's own runs may also import any module, as long as it stays in the folder where it was written: its
hash is stored in the user's home, so a downloaded folder cannot claim this.
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

MAX_BYTES = 2**24  # of a saved configuration; the largest sweeps write about 2**16

trusted: set[str] = {name for name in os.environ.get("REDI_PLUGINS", "").split(",") if name}  # packages or modules


def trust(*modules: str) -> None:
    """Let configurations import these modules and their submodules from now on. Raises ValueError for invalid names."""
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")) or module.startswith("__gin__"):
            raise ValueError(f"{module!r} must be the name of a Python module, such as 'my_lab' or 'my_lab.reducing'")
    trusted.update(modules)


def read(path: str | os.PathLike, registered: Collection[str] = ()) -> io.StringIO:
    """Read and check the configuration of a folder; return exactly the checked text as a file for gin.

    It may import redi, trusted modules, and modules whose components are `registered`: these are already imported, so
    importing them again runs no code. A file that `write` wrote for this user may import any module.

    Raises ValueError if the file would import or include anything else. Nothing has been imported then.
    """
    file = read_text(path)
    refused = [statement for statement in load_statements(file) if not _is_allowed(statement, registered)]
    if refused and not _is_own(path, file.getvalue()):
        raise ValueError(_message(path, refused))
    return file


def write(path: Path, text: str) -> None:
    """Write a configuration that was parsed in this process, and record it as written by this user. Raises OSError."""
    write_text(path, text)
    if all(_is_among(statement, ("redi",)) for statement in load_statements(io.StringIO(text))):
        return
    try:
        mark = _mark(path, text)
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch()
    except (OSError, RuntimeError) as error:
        log.warning("cannot record %s as written by you (%s): later programs need --plugin to open it", path, error)


def _is_own(path: str | os.PathLike, text: str) -> bool:
    """Return whether `write` recorded this text in this folder, and nobody but this user can write such records."""
    try:
        mark = _mark(path, text)
        folder = mark.parent.stat()
        return mark.exists() and not folder.st_mode & 0o022 and folder.st_uid == os.getuid()
    except (OSError, RuntimeError):
        return False


def _mark(path: str | os.PathLike, text: str) -> Path:
    """Return the file that exists if this user wrote this text here. Raises RuntimeError without a home folder."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    folder = os.fsencode(Path(path).resolve().parent)
    return state / "redi" / "configurations" / hashlib.sha256(folder + b"\0" + text.encode()).hexdigest()


def imported_modules(path: str | os.PathLike) -> list[str]:
    """Return the Python modules that a configuration imports; gin's own `__gin__` switches are left out."""
    statements = load_statements(read_text(path))
    modules = [statement.module for statement in statements if isinstance(statement, ImportStatement)]
    return [module for module in modules if not module.startswith("__gin__")]


def read_text(path: str | os.PathLike) -> io.StringIO:
    """Read a gin file as text, without a byte order mark. Raises ValueError if it is too large or not UTF-8."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} is not a configuration: it has more than {MAX_BYTES} bytes")
    try:
        text = io.StringIO(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read())  # line ends as in open()
    except UnicodeDecodeError as error:
        cause = f"byte {error.start} is not UTF-8 text ({error.reason})"
        raise ValueError(f"{path} is not a gin file: {cause}. Save it as UTF-8") from None
    text.name = str(path)
    return text


class _NamesOnly:
    """A delegate for gin's parser that keeps references and macros as names."""

    def configurable_reference(self, scoped_name: str, evaluate: bool) -> str:
        return scoped_name

    macro = str


def load_statements(file: io.StringIO) -> list[ImportStatement | IncludeStatement]:
    """Return the import and include statements of a file, parsed by gin itself so that no spelling is missed."""
    try:
        statements = [*ConfigParser(file.getvalue(), _NamesOnly())]
    except (tokenize.TokenError, SyntaxError, ValueError, TypeError, StopIteration, RecursionError) as error:
        raise ValueError(f"{getattr(file, 'name', 'the text')} is not a gin file: {str(error)[:500]}") from None
    return [statement for statement in statements if isinstance(statement, ImportStatement | IncludeStatement)]


def _is_among(statement: ImportStatement | IncludeStatement, modules: Collection[str]) -> bool:
    module = getattr(statement, "module", "")
    return any(f"{module}.".startswith(f"{name}.") for name in modules)


def _is_allowed(statement: ImportStatement | IncludeStatement, registered: Collection[str]) -> bool:
    if _is_among(statement, ("redi", *trusted)):
        return True
    module = getattr(statement, "module", None)
    return module in sys.modules and any(f"{name}.".startswith(f"{module}.") for name in registered)


def _message(path: str | os.PathLike, refused: list[ImportStatement | IncludeStatement]) -> str:
    texts = [s.format() if isinstance(s, ImportStatement) else f"include {s.filename!r}" for s in refused[:5]]
    listing = ", ".join(repr(text[:100]) for text in texts) + (", ..." if len(refused) > 5 else "")
    packages = list(dict.fromkeys(getattr(statement, "module", "__gin__").split(".")[0] for statement in refused))
    if "__gin__" in packages:  # or an include
        advice = f"Read the file; if you trust it, pass it as --gin_file={path}"
    else:
        flags = " ".join(f"--plugin={package}" for package in packages)
        advice = (
            f"Read the file; if you trust these modules, pass {flags}, or plugins={packages} in Python, or set "
            f"REDI_PLUGINS={','.join(packages)} in the environment to trust them in every program"
        )
    return f"{path} contains {listing}, which would run code that you have not declared trusted. {advice}"
