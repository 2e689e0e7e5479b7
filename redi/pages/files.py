"""Reading what a run left, whatever state it is in: what cannot be read becomes a note on the page."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from redi.runtime.checksums import unsealed


class Picture(NamedTuple):
    """A PNG inside the page, at its own size in pixels."""

    alt: str
    width: int
    height: int
    base64: str

    @classmethod
    def of(cls, png: bytes, alt: str) -> "Picture":
        """Raises what PIL raises for bytes that are damaged or not a PNG."""
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            picture.load()
        return cls(alt, *picture.size, base64.b64encode(png).decode())


class Folder:
    """A run's (or a sweep's) folder. `notes` collects what could not be read, and why."""

    def __init__(self, path: Path, notes: list[str] | None = None):
        self.path, self.notes = path, [] if notes is None else notes

    def read(self, name: str, show: Callable[[Path], Any]) -> Any:
        """What `show` makes of a file; None where there is none, or with a note where it is damaged or of another
        version.
        """
        try:
            return show(self.path / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError, SyntaxError) as error:
            what = "it was cut short or altered, or is not what this version of redi writes"
            self.notes.append(f"{name} cannot be shown: {what} ({error}).")
            return None

    def json(self, name: str, show: Callable[[dict], Any] = dict) -> Any:
        """What `show` makes of a record, see `read`."""
        return self.read(name, lambda path: show(unsealed(json.loads(path.read_text(encoding="utf-8")), name)))

    def text(self, name: str) -> str | None:
        path = self.path / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    def picture(self, name: str, alt: str) -> Picture | None:
        """A PNG file, see `read`."""
        return self.read(name, lambda path: Picture.of(path.read_bytes(), alt))
