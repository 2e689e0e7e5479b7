"""Paths as users write them, and what a process without an account or a home folder needs instead."""

import getpass
import os
from pathlib import Path


def local_path(path: str | Path) -> Path:
    """A path that a user gave, with ~ expanded; not for URLs. Raises ValueError: no home folder to put in its place."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: this user has no home folder; set HOME, or write the whole path") from None


def cache_folder(cache_dir: str | Path | None) -> Path:
    """The folder for fits and encoded images: as given, else $REDI_CACHE, else ~/.cache/redi; made where it is missing.

    Raises ValueError: it cannot be made.
    """
    complete_account()
    folder = local_path(cache_dir or os.environ.get("REDI_CACHE") or "~/.cache/redi")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "set REDI_CACHE to a folder that can be written, or bind prepare.cache_dir (and evaluate.cache_dir)"
        raise ValueError(f"the cache {folder} cannot be made ({error.strerror}): {remedy}") from None
    return folder


def complete_account() -> None:
    """Name a user that has no entry in the password database, as in a container, and give it the home '/', as Docker
    does: torch and others ask for both when they are imported, and fail, or make a folder named '~'.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError: from Python 3.13 on
        os.environ["USER"] = f"uid_{os.getuid()}"
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/"
