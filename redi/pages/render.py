"""From templates to one HTML file that requests nothing. Jinja2 escapes every value."""

import base64
import hashlib

from redi.pages import wording
from redi.pages.plots import svg


def render(template: str, **content: object) -> str:
    """A whole document. Its policy allows its own style and script and pictures in the page itself, and no request."""
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("redi.pages")
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    functions = (svg, wording.measured, wording.number, wording.words, wording.phrase, wording.listed)
    pages.filters |= {function.__name__: function for function in (*functions, wording.gin_number, wording.gin_words)}
    style, script = (loader.get_source(pages, name)[0] for name in ("page.css", "sorting.js"))
    hashes = [
        base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in (style, script)
    ]
    policy = "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'; ".format(*hashes)
    policy += "base-uri 'none'; form-action 'none'"
    return pages.get_template(template).render(content, policy=policy, style=style, script=script)
