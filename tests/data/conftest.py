"""Real photographs, and an HTTP file server that counts requests, and fails or truncates them on demand."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from redi.data.storage import object_store


class FolderServer:
    """Serve a folder with byte ranges.

    Attributes:
        requests: (file name, "bytes=0-99" or "all") of every GET.
        failures, status: so many requests for each file fail, with this status.
        ranges: False sends whole files instead of ranges.
        truncated: {file name: how often half of it is sent, under a header that promises no more}.
    """

    def __init__(self, folder: Path):
        self.folder, self.failures, self.status, self.ranges = folder, 0, 503, True
        self.requests: list[tuple[str, str]] = []
        self.truncated: dict[str, int] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                server.answer(self, body=False)

            def do_GET(self):
                server.answer(self, body=True)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler, body: bool) -> None:
        name = handler.path.strip("/")
        path, part = self.folder / name, re.match(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        if body:
            self.requests.append((name, part[0] if part else "all"))
            if self.names().count(name) <= self.failures:
                return handler.send_error(self.status)
        if not path.is_file():
            return handler.send_error(404)
        content, ranged = path.read_bytes(), part and self.ranges
        if ranged:
            content = content[int(part[1]) : int(part[2]) + 1]
        if body and self.truncated.get(name, 0) > 0:
            self.truncated[name] -= 1
            content = content[: len(content) // 2]
        handler.send_response(206 if ranged else 200)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        handler.end_headers()
        if body:
            try:
                handler.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):  # a client that learns of missing ranges does not read on
                pass

    def names(self) -> list[str]:
        return [name for name, _ in self.requests]

    def parts(self) -> list[str]:
        return [part for _, part in self.requests]


@pytest.fixture
def serve():
    """Return a function that starts a FolderServer for a folder; it stops at the end of the test."""
    pytest.importorskip("aiohttp")
    servers = []

    def serve(folder: Path) -> FolderServer:
        servers.append(FolderServer(folder))
        threading.Thread(target=servers[-1].server.serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield serve
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(object_store, "PAUSE_SECONDS", 0.0)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """The photographs of scikit-learn as JPEG files in two classes: full, tall, small, grey and rotated by EXIF."""
    root = tmp_path_factory.mktemp("photographs")
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        image, exif = Image.fromarray(pixels), Image.Exif()  # 640 x 427
        exif[0x0112] = 6
        (root / name).mkdir()
        image.save(root / name / "whole.jpg")
        image.crop((100, 0, 190, 427)).save(root / name / "tall.jpg")
        if name == "china":
            image.convert("L").resize((75, 56)).save(root / name / "grey.jpg")
        else:
            image.save(root / name / "sideways.jpg", exif=exif)
    return root
