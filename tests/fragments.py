"""For the tests of what objects show in Jupyter: parses a fragment of HTML."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>"


class Fragment(HTMLParser):
    """The tags and the text of a fragment, whose tags must be closed; `picture` is its image."""

    def __init__(self, source: str):
        super().__init__()
        self.tags, self.open, self.text, self.picture = [], [], "", None
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            attributes = dict(attrs)
            png = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"), validate=True)
            self.picture = Image.open(io.BytesIO(png), formats=["PNG"])
            assert self.picture.size == (int(attributes["width"]), int(attributes["height"]))
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data} "
