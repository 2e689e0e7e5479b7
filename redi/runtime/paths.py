"""Paths written by users, and defaults for processes without an account or a home folder."""

import getpass
import os
from pathlib import Path


def local_path(path: str | Path) -> Path:
    """Expand ~ in a path written by a user; not for URLs. Raises ValueError if ~ cannot be expanded."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: this user has no home folder: set HOME, or write the path without ~") from None


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Return and create the cache folder: `cache_dir`, else $REDI_CACHE, else ~/.cache/redi. Raises ValueError."""
    complete_account()
    folder = local_path(cache_dir or os.environ.get("REDI_CACHE") or "~/.cache/redi")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "set REDI_CACHE to a writable folder, or bind prepare.cache_dir (and evaluate.cache_dir)"
        raise ValueError(f"cannot create the cache folder {folder} ({error.strerror}): {remedy}") from None
    return folder


def complete_account() -> None:
    """Set USER and HOME for a user without an entry in the password database, as in a container.

    torch and other libraries look up both on import, and fail or create a folder '~' without them. HOME is then '/'.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        os.environ["USER"] = f"uid_{os.getuid()}"
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/"
