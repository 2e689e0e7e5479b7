"""Reading what a run left, whatever state it is in: what cannot be read becomes a note on the page."""

import base64
import io
import json
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from redi.pages.markup import Html, details, element, is_number
from redi.runtime.checksums import unsealed
from redi.runtime.log import read_log


class Folder:
    """A run's (or a sweep's) folder. `notes` collects what could not be read, and why."""

    def __init__(self, path: Path, notes: list[str] | None = None):
        self.path = path
        self.notes: list[str] = [] if notes is None else notes

    def json(self, name: str, kind: type = dict):
        """The contents of a JSON file, or None where it is missing, cut short or of another kind."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
            if isinstance(content, list):
                content = [unsealed(one, name) if isinstance(one, dict) else one for one in content]
            elif isinstance(content, dict):
                content = unsealed(content, name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError) as error:  # also BrokenArtefact, and those of JSON and Unicode
            self.notes.append(f"{name} cannot be read; it was cut short or altered ({error}).")
            return None
        if not isinstance(content, kind):
            self.notes.append(f"{name} cannot be read: it holds no {kind.__name__}.")
            return None
        return content

    def text(self, name: str) -> str | None:
        """The contents of a text file, or None."""
        path = self.path / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    def listing(self, name: str, summary: str) -> Html:
        """A text file, folded."""
        content = self.text(name)
        return Html() if content is None else details(summary, element("pre", content, tabindex="0"))

    def picture(self, name: str, alt: str) -> Html:
        """A PNG file, inlined at its own size; a damaged one is left out with a note."""
        path = self.path / name
        if not path.is_file():
            return Html()
        content = path.read_bytes()
        try:
            with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                picture.load()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            self.notes.append(f"{name} cannot be shown: {error}.")
            return Html()
        return inline_picture(content, alt, *picture.size)

    def log(self) -> list[dict]:
        """The entries of log.jsonl, without those that are none."""
        return [entry for entry in read_log(self.path) if isinstance(entry, dict) and is_number(entry.get("step"))]


def inline_picture(png: bytes, alt: str, width: int, height: int, class_: str | None = None) -> Html:
    """An <img> that needs no file."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return element("img", alt=alt, width=width, height=height, class_=class_, src=source)


def encoded(picture: Image.Image) -> bytes:
    """As PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
