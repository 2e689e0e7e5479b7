"""HTML with which objects show themselves in Jupyter: tables and pictures, without scripts."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape

from PIL import Image

from redi.sampling.pictures import sample_grid


def table(rows: Iterable[Sequence[object]], head: Sequence[object] = ()) -> str:
    """Return an HTML table of escaped texts. The first cell of each row is its header.

    Examples:
        >>> table([("<folder>", 1)])
        '<table><tr><th scope="row">&lt;folder&gt;</th><td>1</td></tr></table>'
    """
    top = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    lines = [top] * bool(head)
    for first, *others in rows:
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in others)
        lines.append(f'<th scope="row">{_text(first)}</th>{cells}')
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def inline(picture: Image.Image, alt: str) -> str:
    """Return an HTML image that contains the picture as a PNG."""
    png = io.BytesIO()
    picture.save(png, format="PNG")
    source = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    return f'<img alt="{_text(alt)}" width="{picture.width}" height="{picture.height}" src="{source}">'


def samples_html(drawn, most: int = 40) -> str:
    """Return how samples were drawn, and a picture of the first of them.

    Args:
        drawn: the samples, a `Generated`. Its features are shown if it has `channels` and `colours`.
        most: the number of samples in the picture.
    """
    record, count = drawn.record, len(drawn.labels)
    rows: list[tuple[str, object]] = [("samples", f"{count:,}" + f", the first {most} shown" * (count > most))]
    if "sampler" in record:
        rules = [f"{rule['name']} {rule.get('scale', '')}".strip() for rule in record.get("guidance", ())]
        rows.append(("sampler", f"{record['sampler']['name']}, {record['function_evaluations']} evaluations"))
        rows.append(("guidance", ", ".join(rules) or "none"))
    if record.get("seed") is not None:
        rows.append(("seed", record["seed"]))
    if drawn.images is None:  # not kept
        return table(rows)
    has_features = drawn.x is not None and drawn.channels and drawn.colours and drawn.colours.tensors
    x = drawn.x[:most] if has_features else None
    some = replace(drawn, images=drawn.images[:most], x=x, labels=drawn.labels[:most])
    return table(rows) + inline(sample_grid(some, drawn, drawn.colours, class_names=drawn.class_names), "samples")


def _text(value: object) -> str:
    """Escape a text for HTML; lone surrogates, as in file names, cannot be sent and are written as escapes."""
    return escape(str(value)).encode("utf-8", errors="backslashreplace").decode()
