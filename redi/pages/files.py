"""Reading what a run left, whatever state it is in: what cannot be read becomes a note on the page."""

import base64
import io
import json
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

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

    def json(self, name: str, kind: type = dict):
        """The contents of a JSON file, or None where it is missing, cut short or of another kind."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
            if not isinstance(content, kind):
                raise ValueError(f"it is not a {kind.__name__}")
            if kind is list:
                return [unsealed(entry, name) if isinstance(entry, dict) else entry for entry in content]
            return unsealed(content, name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError) as error:  # also BrokenArtefact, and those of JSON and Unicode
            self.notes.append(f"{name} cannot be read; it was cut short or altered ({error}).")
            return None

    def text(self, name: str) -> str | None:
        path = self.path / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    def picture(self, name: str, alt: str) -> Picture | None:
        """A PNG file, or None; a damaged one is left out with a note."""
        try:
            return Picture.of((self.path / name).read_bytes(), alt)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            self.notes.append(f"{name} cannot be shown: {error}.")
            return None
