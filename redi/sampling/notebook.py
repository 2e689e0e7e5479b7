"""HTML with which objects show themselves in Jupyter: a table of escaped texts above a picture, without scripts."""

from collections.abc import Mapping
from dataclasses import replace
from html import escape

from PIL import Image

from redi.sampling.pictures import png_address, sample_grid


def shown(rows: Mapping[str, object], picture: Image.Image | None = None) -> str:
    """Return a table with a name and a value in each row, above a picture as a PNG.

    Examples:
        >>> shown({"seed": "<b>"})
        '<table><tr><th style="text-align: left">seed</th><td style="text-align: left">&lt;b&gt;</td></tr></table>'
    """
    left = 'style="text-align: left"'
    cells = (f"<tr><th {left}>{name}</th><td {left}>{escape(str(value))}</td></tr>" for name, value in rows.items())
    html = f"<table>{''.join(cells)}</table>"
    if picture is not None:
        html += f'<img alt="images" width="{picture.width}" height="{picture.height}" src="{png_address(picture)}">'
    return html.encode("utf-8", errors="backslashreplace").decode()  # file names may not be valid text


def samples_shown(drawn, most: int = 40) -> str:
    """Return how samples (`Generated`) were drawn, and a picture of at most `most`, with features in known colours."""
    record, count = drawn.record, len(drawn.labels)
    rows: dict[str, object] = {"samples": f"{count:,}" + f", the first {most} shown" * (count > most)}
    if "sampler" in record:
        rules = [f"{rule['name']} {rule.get('scale', '')}".strip() for rule in record.get("guidance", ())]
        rows["sampler"] = f"{record['sampler']['name']}, {record['function_evaluations']} evaluations"
        rows |= {"guidance": ", ".join(rules) or "none", "seed": record.get("seed")}
    if drawn.images is None:  # not kept
        return shown(rows)
    x = drawn.x[:most] if drawn.x is not None and drawn.colours and drawn.colours.tensors else None
    some = replace(drawn, images=drawn.images[:most], x=x, labels=drawn.labels[:most])
    return shown(rows, sample_grid(some, drawn, drawn.colours, class_names=drawn.class_names))
