"""Render templates: HTML pages that make no requests, with every value escaped by Jinja2, and Markdown."""

import base64
import hashlib

from redi.pages import wording
from redi.pages.plots import svg


def render(
    template: str, *, styles: str = "page.css", scripts: str = "sorting.js", policy: str = "", **content: object
) -> str:
    """Render a whole HTML document, whose security policy allows its own style, script and pictures but no requests.

    Args:
        styles, scripts: names of templates, separated by spaces.
        policy: what the security policy allows beyond that.
    """
    pages = _templates(escape=True)
    functions = (svg, wording.with_spread, wording.number, wording.phrase, wording.as_list)
    pages.filters |= {function.__name__: function for function in (*functions, wording.gin_number, wording.gin_words)}
    sources = [[pages.loader.get_source(pages, name)[0] for name in names.split()] for names in (styles, scripts)]
    style, script = map("".join, sources)
    hashes = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in (style, script)]
    allowed = "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'; ".format(*hashes)
    allowed += f"base-uri 'none'; form-action 'none'{policy}"
    return pages.get_template(template).render(content, policy=allowed, style=style, script=script)


def render_text(template: str, **content: object) -> str:
    """Render a document that is not HTML, such as Markdown."""
    return _templates(escape=False).get_template(template).render(content)


def _templates(*, escape: bool):
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("redi.pages")
    return Environment(
        loader=loader, autoescape=escape, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
