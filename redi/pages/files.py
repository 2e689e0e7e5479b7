"""Read the files of a run or sweep. A file that cannot be read becomes a note on the page."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from redi.runtime.checksums import unsealed


class Picture(NamedTuple):
    """A PNG embedded in the page; width and height in pixels."""

    alt: str
    width: int
    height: int
    base64: str

    @classmethod
    def of(cls, png: bytes, alt: str) -> "Picture":
        """Decode a PNG file. Raises the errors of PIL if it is damaged or not a PNG."""
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            picture.load()
        return cls(alt, *picture.size, base64.b64encode(png).decode())


class Folder:
    """The folder of a run or sweep. `notes` collects the files that cannot be read, and why."""

    def __init__(self, path: Path, notes: list[str] | None = None):
        self.path, self.notes = path, [] if notes is None else notes

    def read(self, name: str, show: Callable[[Path], Any]) -> Any:
        """Return `show(path)`; None if the file is missing, or with a note if it cannot be read."""
        try:
            return show(self.path / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError, SyntaxError) as error:
            self.notes.append(f"{name} cannot be shown: truncated, altered or of another version of redi ({error}).")
            return None

    def json(self, name: str, show: Callable[[dict], Any] = dict) -> Any:
        """Return `show(record)` of a JSON record, or None; see `read`."""
        return self.read(name, lambda path: show(unsealed(json.loads(path.read_text(encoding="utf-8")), Path(name))))

    def text(self, name: str) -> str | None:
        """Return the content of a text file, or None if it is missing."""
        path = self.path / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    def picture(self, name: str, alt: str) -> Picture | None:
        """Return a PNG file as a picture, or None; see `read`."""
        return self.read(name, lambda path: Picture.of(path.read_bytes(), alt))
