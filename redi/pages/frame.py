"""The frame of a page: one file that asks for nothing."""

import base64
import hashlib
from collections.abc import Sequence

from redi.pages.markup import Html, element, join, warning
from redi.pages.style import SORTING, STYLE


def page(title: str, lead: str, notes: Sequence[str], sections: Sequence[Html]) -> str:
    """A whole document. Its policy allows this style, this script and pictures in the page itself, and no request."""
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(STYLE)}'; script-src '{_hash(SORTING)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    body = element(
        "body",
        element("h1", title),
        element("p", lead, class_="lead"),
        *[warning(note) for note in dict.fromkeys(notes)],
        element("main", *sections),
        element("script", Html(SORTING)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def sortable(headers: Sequence[tuple[str, bool]], rows: Sequence[Sequence[Html]], label: str) -> Html:
    """A table that sorts by a click on a header.

    Args:
        headers: the text of each, and whether its column is of numbers.
        rows: their cells, see `cell`.
    """
    head = [
        element("th", element("button", name, type="button"), scope="col", aria_sort="none",
                class_="number" if numeric else None)
        for name, numeric in headers
    ]  # fmt: skip
    return element(
        "table",
        element("thead", element("tr", *head)),
        element("tbody", *[element("tr", *row) for row in rows]),
        class_="sortable",
        aria_label=label,
    )


def cell(shown: object, value: object = None, numeric: bool = False) -> Html:
    """A table cell; `value`: what it is sorted by, where that is not what is shown ('' sorts last)."""
    return element("td", shown, data_value=value, class_="number" if numeric else None)


def record_table(groups: Sequence[tuple[str, Sequence[tuple[str, object]]]]) -> Html:
    """Names and values under headings."""
    bodies = []
    for heading, rows in groups:
        top = [element("tr", element("th", heading, colspan="2", scope="rowgroup"), class_="group")] if heading else []
        lines = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows]
        bodies.append(element("tbody", *top, *lines))
    return element("table", join(bodies), class_="record")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
