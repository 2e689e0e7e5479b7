"""The page of `redi.explore`: settings on the left, what the model makes of them on the right."""

import base64
import logging
import re
import socket
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from einops import rearrange
from PIL import Image
from torch import Tensor

from redi.data.uploads import MAX_UPLOAD_BYTES, uploaded_image
from redi.pages.render import render
from redi.runtime.ranges import check_number
from redi.sampling.pictures import png_address

log = logging.getLogger(__name__)

QUERY = ("label", "seed", "num_evaluations")  # settings; anything else in a request is ignored
GENERATE = (*QUERY, "guidance", "lead")
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
PATH = re.compile(r"(^|[\s'\"(=:])[/~]\S")  # an absolute path, which a message on the page must not show


def check_extra() -> None:
    """Raise ImportError, with the command to install it, if Flask is missing."""
    if find_spec("flask") is None:
        raise ImportError("redi.explore needs Flask: pip install 'redi-diffusion[explore]'")


def listen(host: str, port: int) -> socket.socket:
    """Open the port. Raises ValueError if another program has it, or the host is not of this machine."""
    check_number("--port", port, 0, below=2**16, note="0 chooses a free one")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        cause = f"--port = {port}: cannot be opened on {host} ({error.strerror})"
        advice = "if another page uses it, pass another --port; 0 chooses a free one"
        raise ValueError(f"{cause}: {advice}") from None


def serve(app: Any, listener: socket.socket) -> None:
    """Answer requests to an application until Ctrl-C."""
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    host, port = listener.getsockname()[:2]
    with make_server(host, port, app, threaded=True, fd=listener.fileno()) as server:
        print(f"open http://{f'[{host}]' if ':' in host else host}:{port} in a browser; Ctrl-C stops", flush=True)
        server.serve_forever()


def build_app(explorer: Any, host: str = "127.0.0.1", *, label: int | str | None = None):
    """Return the Flask application of a page.

    Args:
        explorer: a `redi.runs.explorer.Explorer`.
        host: the address that it is served on. Requests to this machine itself must name it as their host, so that no
            other page in the browser can reach it under a name of its own.
        label: the class to show first.
    """
    import flask

    app, busy, page = flask.Flask(__name__, static_folder=None), threading.Lock(), _page(explorer, label)
    app.config["MAX_CONTENT_LENGTH"] = 2**20 + MAX_UPLOAD_BYTES * 4 // 3  # settings, and an upload in base64
    app.config["TRUSTED_HOSTS"] = [host, "localhost"] if host in ("127.0.0.1", "::1") else None
    app.after_request(lambda response: response.headers.update(HEADERS) or response)
    app.add_url_rule("/", "page", lambda: page)
    app.add_url_rule("/favicon.ico", "icon", lambda: ("", 204))

    @app.post("/<any(generate, features, images):question>")
    def answer(question: str):
        if not isinstance(request := flask.request.get_json(silent=True), dict):
            return {"error": "the request must be a JSON object"}, 400  # browsers let no other page post JSON
        if not busy.acquire(blocking=False):
            return {"error": "busy with another request"}, 429
        try:
            return _json(_view(explorer, question, request))
        except Exception as error:
            text = str(error)
            if isinstance(error, ValueError) and not PATH.search(text):
                return {"error": text}, 400
            log.exception("a request failed")
            return {"error": "this failed; the terminal of redi.explore shows why"}, 500
        finally:
            busy.release()

    @app.errorhandler(413)
    def too_large(_):
        return {"error": f"the file is too large: must have at most {MAX_UPLOAD_BYTES:,} bytes"}, 413

    return app


def _view(explorer: Any, question: str, request: Mapping[str, Any]) -> Any:
    if question == "generate":
        return explorer.generate(**_chosen(request, GENERATE))
    settings, source = _chosen(request, QUERY), request.get("image")
    if isinstance(source, str):
        try:
            data = base64.b64decode(source, validate=True)
        except ValueError:
            raise ValueError("image: must be a file in base64") from None
        source = uploaded_image(data, explorer.run.image_size)
    elif question == "images" and isinstance(source, dict):
        source = _chosen(source, GENERATE)
    else:
        raise ValueError("no image: choose a file first")
    ask = explorer.images_given_features if question == "images" else explorer.features_given_image
    return ask(source, **settings)


def _chosen(request: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: request[name] for name in names if name in request}


def _json(view: Any) -> dict[str, Any]:
    """Return a `View` with its pictures as PNG, in the addresses of images."""
    strips = [{"title": title, "pictures": _pictures(pictures)} for title, pictures in view.strips.items()]
    return {"pictures": _pictures(view.pictures), "strips": strips, "notes": view.notes}


def _pictures(pictures: list[tuple[str, Tensor]]) -> list[dict[str, str]]:
    images = [Image.fromarray(rearrange(picture, "c h w -> h w c").contiguous().numpy()) for _, picture in pictures]
    return [{"caption": caption, "src": png_address(one)} for (caption, _), one in zip(pictures, images, strict=True)]


def _page(explorer: Any, label: int | str | None) -> str:
    run, controls = explorer.run, explorer.controls()
    lead = f"{type(run.model).__name__} of step {run.step:,}, {run.image_size} x {run.image_size} pixels, "
    lead += f"image with {' and '.join(controls['representations'])}" if controls["representations"] else "image alone"
    return render(
        "explore.html", styles="page.css explore.css", scripts="explore.js", policy="; connect-src 'self'",
        title=f"Explore {run.folder.resolve().name if run.folder else 'a model'}",
        lead=f"{lead}; {controls['sampler']}, on {run.codec.device.type}", notes=[],
        label=None if label is None else explorer.label_number(label),
        controls=controls | {"max_upload_bytes": MAX_UPLOAD_BYTES},
    )  # fmt: skip
