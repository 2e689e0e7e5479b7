import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from redi.runtime.hub_files import cached_hub_file, find_hub_file

BODY = b"weights"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASKED = {"repo_id": "lab/model", "filename": "model.safetensors", "binding": "Net.weights"}


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub that a download needs: lab/model has one file, lab/gated a licence; for lab/down it
    hangs up."""

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        self.answer(BODY)

    def answer(self, body: bytes) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        repo, _, file = self.path[1:].partition("/resolve/main/")
        if repo == "lab/down":
            return
        refusals = {"lab/gated": (403, "GatedRepo"), "lab/none": (401, "RepoNotFound")}
        known = (200, None) if file == "model.safetensors" else (404, "EntryNotFound")
        status, error = refusals.get(repo, known)
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(BODY).hexdigest()}"')
        self.send_header("Content-Length", str(0 if error else len(BODY)))
        self.end_headers()
        self.wfile.write(b"" if error else body)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def hub_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    point_at(monkeypatch, "http://127.0.0.1:9")  # nothing listens there
    return tmp_path / "hub"


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    point_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def point_at(monkeypatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


def test_a_file_is_downloaded_into_the_hub_cache(hub, hub_cache):
    path = find_hub_file(**ASKED)
    assert path.read_bytes() == BODY
    assert path == hub_cache / "models--lab--model" / "snapshots" / COMMIT / "model.safetensors"


def test_a_cached_file_is_found_without_asking_the_hub(hub):
    path = find_hub_file(**ASKED)
    hub.asked.clear()
    assert find_hub_file(**ASKED) == path == cached_hub_file(**ASKED)
    assert hub.asked == []


def test_a_cached_file_is_found_offline(hub, monkeypatch):
    path = find_hub_file(**ASKED)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_hub_file(**ASKED) == path


def test_a_hub_that_does_not_answer_is_asked_once(hub):
    """Without this check the hub client retries for about a minute."""
    with pytest.raises(ValueError, match="http://127.0.0.1:.* does not respond"):
        find_hub_file(**ASKED | {"repo_id": "lab/down"})
    asked = [request for request in hub.asked if "lab/down" in request]  # the client has questions of its own
    assert asked == ["HEAD /lab/down/resolve/main/model.safetensors"]


def test_without_a_network_the_message_says_what_to_do(hub_cache):
    with pytest.raises(ValueError) as error:
        find_hub_file(**ASKED)
    message = str(error.value)
    assert f"model.safetensors of lab/model is not in the local hub cache ({hub_cache})" in message
    assert "http://127.0.0.1:9 does not respond (ConnectError" in message
    assert "Download model.safetensors from https://huggingface.co/lab/model" in message
    assert "and set Net.weights to its path" in message


def test_a_binding_that_takes_a_folder_is_told_all_files_of_it():
    expected = "no local folder 'lab/model', and .*Download a.json and b.bin from .* into a folder and set Net.weights"
    with pytest.raises(ValueError, match=expected):
        find_hub_file(**ASKED, folder=("a.json", "b.bin"))


def test_offline_the_hub_is_not_asked(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set. Download model.safetensors from"):
        find_hub_file(**ASKED)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename": "other.bin"}, "Net.weights: lab/model on the hub has no file other.bin"),
        ({"repo_id": "lab/none"}, "Net.weights: the hub has no public model lab/none"),
        ({"repo_id": "lab/gated"}, "its licence must be accepted first: accept it at https://huggingface.co/lab/gated"),
    ],
)
def test_what_the_hub_refuses_is_explained(hub, change, message):
    with pytest.raises(ValueError, match=message):
        find_hub_file(**ASKED | change)


@pytest.mark.parametrize("repo_id", ["/data/weights/vae", "../vae", "a/b/c"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(repo_id):
    with pytest.raises(ValueError, match=f"Net.weights = '{repo_id}' must be an existing file or folder"):
        find_hub_file(**ASKED | {"repo_id": repo_id})
