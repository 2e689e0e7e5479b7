"""HTML that is escaped by construction: whatever is not markup already is text."""

import html
import math

VOID = {"img", "meta", "br"}


class Html(str):
    """Markup. Every other string is text, which `element` escapes."""

    __slots__ = ()


def text(value: object) -> Html:
    """Anything as markup: `Html` stays, everything else is escaped."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts, separator: str = "") -> Html:
    """Markup or text, one after the other."""
    return Html(text(separator).join(text(part) for part in parts))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """<tag attributes>children</tag>, escaped.

    Attributes: a trailing underscore is dropped (class_), other underscores are hyphens (aria_sort); None leaves an
    attribute out, True gives it no value. There are no style attributes: the pages' content security policy refuses
    them.
    """
    shown = ""
    for name, value in attributes.items():
        if value is None:
            continue
        name = name.rstrip("_").replace("_", "-")
        shown += f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
    if tag in VOID:
        return Html(f"<{tag}{shown}>")
    return Html(f"<{tag}{shown}>{join(children)}</{tag}>")


def section(title: str, *body: Html) -> Html:
    """A heading and what belongs to it; nothing where the body is empty."""
    if not any(body):
        return Html()
    return element("section", element("h2", title), *body, id=title.lower().replace(" ", "-"))


def details(summary: object, *body: Html, open_: bool = False) -> Html:
    """What unfolds."""
    return element("details", element("summary", summary), *body, open_=open_ or None)


def warning(message: object) -> Html:
    """A message that must not be overlooked."""
    return element("p", element("strong", "Note: "), message, class_="warning")


def scrolling(*body: Html, label: str) -> Html:
    """What is wider than a phone scrolls by itself, also by keyboard, and the page does not."""
    return element("div", *body, class_="wide", tabindex="0", role="region", aria_label=label)


def number(value: object, digits: int = 4) -> str:
    """A number for people; anything else as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    return f"{int(value):,}" if value.is_integer() and abs(value) < 1e15 else f"{value:.{digits}g}"


def is_number(value: object) -> bool:
    """A finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def words(name: str) -> str:
    """frechet_distance -> frechet distance."""
    return str(name).replace("_", " ")


def phrase(value: object) -> str:
    """A part of a record as one line: {"name": "Euler", "num_evaluations": 50} -> Euler (num evaluations 50)."""
    if isinstance(value, dict):
        rest = [f"{words(key)} {phrase(part)}" for key, part in value.items() if key != "name"]
        if "name" not in value:
            return ", ".join(rest) or "none"
        return f"{value['name']} ({', '.join(rest)})" if rest else str(value["name"])
    if isinstance(value, list | tuple):
        if value and all(isinstance(row, list) for row in value):
            return f"{len(value)} rows, see the record in full"
        return ", ".join(phrase(part) for part in value) or "none"
    return number(value, digits=6) if isinstance(value, float) else str(value)
