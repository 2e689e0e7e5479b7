"""A cache in object storage gives what the same cache on disk gives, in bounded space, whatever the store does."""

import functools
import http.server
import json
import shutil
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from redi.data.cache.cache import Cache, manifest_sha256
from redi.data.cache.prepare import prepare
from redi.data.cache.stream import CacheStream
from redi.data.cache.write import write_cache
from redi.data.datasets.digits import Digits
from redi.data.loader import batches
from redi.data.order import Blocks
from redi.data.storage import remote
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA
from redi.runtime.checksums import BrokenArtefact

COUNT, ROWS, WINDOW = 200, 10, 40
BYTES = 2_500  # a shard takes a little less


@pytest.fixture(scope="module")
def images():
    return Digits().without(range(COUNT, 1438))


def tiny_codec():
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=2, batch_size=16)
    return JointCodec(
        autoencoder=Pixels(channels=1), representations=[Representation(encoder=encoder, reducer=PCA(rank=3))]
    )


@pytest.fixture(scope="module")
def codec(images, tmp_path_factory):
    codec = tiny_codec()
    prepare(codec=codec, dataset=images, cache_dir=tmp_path_factory.mktemp("fits"))
    return codec


@pytest.fixture(scope="module")
def folder(codec, images, tmp_path_factory) -> Path:
    """20 shards of 10 mirrored rows."""
    return write_cache(tmp_path_factory.mktemp("c") / "cache", codec, images, mirror=True, rows_per_shard=ROWS).folder


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.0)


class Server:
    """An HTTP server of a folder; it counts requests, fails the first `failures` of each file, and may cut them short.

    Attributes:
        truncated: {file name: how often half of it is sent, under a header that promises no more}.
    """

    def __init__(self, folder, failures=0, status=503):
        self.requests, self.truncated = [], {}

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(handler):
                name = handler.path.strip("/")
                self.requests.append(name)
                if self.requests.count(name) <= failures:
                    handler.send_error(status)
                elif self.truncated.get(name, 0) > 0:
                    self.truncated[name] -= 1
                    half = (folder / name).read_bytes()
                    half = half[: len(half) // 2]
                    handler.send_response(200)
                    handler.send_header("Content-Length", str(len(half)))
                    handler.end_headers()
                    handler.wfile.write(half)
                else:
                    super().do_GET()

            def log_message(handler, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def shards(self):
        return [name for name in self.requests if name.startswith("shard")]


def open_stream(url, tmp_path, num_shards=12, **settings):
    """With room for so many of the shards."""
    settings = {"max_bytes": num_shards * BYTES, "window": WINDOW} | settings
    return CacheStream(url, folder=tmp_path / "local", **settings)


def local(folder):
    cache = Cache(folder)
    cache.blocks = Blocks(cache._starts, WINDOW)
    return cache


def read(source, start=0, stop=31):
    return list(batches(source, batch_size=13, seed=5, start=start, stop=stop, shuffle="shards"))


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert set(a) == set(b)
        assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_the_shards_are_of_the_size_that_these_tests_count_with(folder):
    sizes = [path.stat().st_size for path in folder.glob("shard-*")]
    assert len(sizes) == 20
    assert 0.9 * BYTES < min(sizes) <= max(sizes) <= BYTES


@pytest.fixture(params=["path", "file", "memory", "http"])
def url(request, folder):
    if request.param == "path":
        yield str(folder)
    elif request.param == "file":
        yield f"file://{folder}/"
    elif request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.put(str(folder), "/bucket/cache", recursive=True)
        yield "memory://bucket/cache"
        memory.rm("/bucket", recursive=True)
    else:
        pytest.importorskip("aiohttp")
        with Server(folder) as server:
            yield server.url


def test_batches_are_bit_equal_to_those_of_the_cache_on_disk(url, folder, tmp_path):
    """Over two epochs, with mirrors."""
    assert_equal(read(open_stream(url, tmp_path)), read(local(folder)))


@pytest.mark.parametrize("start", [1, 3, 14, 29])
def test_a_resumed_run_continues_with_the_same_batches(folder, tmp_path, start):
    assert_equal(read(open_stream(str(folder), tmp_path), start), read(local(folder))[start:])


def test_a_resumed_run_fetches_no_more_than_its_windows(folder, tmp_path):
    pytest.importorskip("aiohttp")
    with Server(folder) as server:
        read(open_stream(server.url, tmp_path), start=7, stop=8)
    assert 1 <= len(server.shards()) <= 4 + 4 + 1  # the rows 91 to 103 lie in one window or two, one more is ahead


def test_each_shard_is_fetched_once_per_epoch(folder, tmp_path):
    pytest.importorskip("aiohttp")
    with Server(folder) as server:
        read(open_stream(server.url, tmp_path, num_shards=10), stop=30)  # 390 of two epochs' 400 rows
    counts = [server.shards().count(path.name) for path in folder.glob("shard-*")]
    assert max(counts) <= 2  # by far not all 20 fit, so most are needed twice
    assert sum(counts) > 30


def test_what_fits_as_a_whole_is_fetched_once_in_all(folder, tmp_path):
    pytest.importorskip("aiohttp")
    with Server(folder) as server:
        read(open_stream(server.url, tmp_path, num_shards=20), stop=62)
    assert sorted(server.shards()) == sorted(path.name for path in folder.glob("shard-*"))


def mapped(tmp_path):
    """Shards that this process maps, by the inode of their files, as the system sees it."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return {line[4] for line in lines if len(line) > 5 and str(tmp_path / "local") in line[5]}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="shows what is mapped")
def test_no_more_than_the_allowed_space_is_taken_and_none_is_left(folder, tmp_path):
    stream, most = open_stream(str(folder), tmp_path, num_shards=10), 0
    for _ in batches(stream, batch_size=13, seed=5, start=0, stop=62, shuffle="shards"):
        files = list((tmp_path / "local").iterdir())
        most = max(most, len(mapped(tmp_path)))
        assert len(files) <= 4  # being fetched
    assert 4 < most <= 12
    assert sum(stream._sizes[n] for n in stream._local) == stream._taken <= 10 * BYTES
    del stream
    assert list((tmp_path / "local").iterdir()) == []
    assert mapped(tmp_path) == set()


def test_rows_in_any_order_are_to_be_had_in_the_least_space(folder, tmp_path):
    stream = open_stream(str(folder), tmp_path, num_shards=4, window=1)
    positions = np.random.default_rng(0).permutation(COUNT)
    assert_equal([stream.batch(positions)], [Cache(folder).batch(positions)])


def test_the_positions_for_statistics_are_spread_and_come_from_few_shards(folder, tmp_path, monkeypatch):
    stream = open_stream(str(folder), tmp_path)
    assert np.array_equal(stream.sample_positions(COUNT), np.arange(COUNT))
    assert len(set(stream.sample_positions(50))) == 50
    monkeypatch.setattr("redi.data.cache.stream.SAMPLE_BYTES", 3 * BYTES)
    chosen = stream.sample_positions(12)
    assert len(set(chosen)) == 12
    assert {0, 190} <= set(chosen // ROWS * ROWS) and len(set(chosen // ROWS)) == 3


def test_failed_requests_are_made_again(folder, tmp_path):
    pytest.importorskip("aiohttp")
    with Server(folder, failures=2) as server:
        assert_equal(read(open_stream(server.url, tmp_path), stop=9), read(local(folder), stop=9))


def test_a_shard_that_came_cut_short_is_fetched_again(folder, tmp_path):
    pytest.importorskip("aiohttp")
    with Server(folder) as server:
        server.truncated = {path.name: 1 for path in folder.glob("shard-*")}
        assert_equal(read(open_stream(server.url, tmp_path), stop=9), read(local(folder), stop=9))
        assert sum(server.truncated.values()) < 20


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "published")


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (Path.unlink, "FileNotFoundError"),
        (damage, "its SHA-256 is not the manifest's: damaged, or of another cache"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), r"\d+ bytes came instead of \d+"),
    ],
    ids=["missing", "damaged", "truncated"],
)
def test_a_shard_that_stays_bad_is_named_with_url_cause_and_remedy(copied, tmp_path, harm, what):
    harm(copied / "shard-00012.safetensors")
    message = rf"published/shard-00012.safetensors: not to be had in 3 attempts.*{what}.*copy the cache to .*published"
    with pytest.raises(OSError, match=message):
        read(open_stream(str(copied), tmp_path, attempts=3))


def test_a_server_without_the_right_to_read_is_not_asked_again(folder, tmp_path):
    pytest.importorskip("aiohttp")
    with Server(folder, failures=99, status=403) as server:
        with pytest.raises(PermissionError, match="manifest.json: access is denied .*403.*credentials are those of"):
            open_stream(server.url, tmp_path)
        assert server.requests == ["manifest.json"]


def test_a_url_without_a_cache_is_refused_at_once(folder, tmp_path):
    pytest.importorskip("aiohttp")
    with Server(folder) as server:
        with pytest.raises(FileNotFoundError, match="elsewhere/manifest.json is not there: is the URL that of the"):
            open_stream(f"{server.url}/elsewhere", tmp_path)
        assert len(server.requests) == 1


@pytest.mark.parametrize("content", ["{", '{"format": 1}'])
def test_a_manifest_that_is_none_is_refused(copied, tmp_path, content):
    (copied / "manifest.json").write_text(content)
    with pytest.raises(BrokenArtefact, match=r"published/manifest.json .*copy the cache to .*published again, whole"):
        open_stream(str(copied), tmp_path)


def test_a_manifest_that_names_files_elsewhere_is_refused(copied, tmp_path):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["shards"][0]["file"] = "../../secret"
    (copied / "manifest.json").write_text(json.dumps(manifest | {"sha256": manifest_sha256(manifest)}))
    with pytest.raises(BrokenArtefact, match="manifest.json makes no sense"):
        open_stream(str(copied), tmp_path)


def test_a_learned_state_that_was_altered_is_refused(copied, tmp_path):
    path = copied / "learned.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BrokenArtefact, match="learned.safetensors was altered after it was written: copy the cache"):
        open_stream(str(copied), tmp_path).learned_state()


def test_too_little_room_is_refused_before_anything_is_fetched(folder, tmp_path):
    what = r"prepare.local_gib = 0.00 is too little .* Raise it, or lower prepare.window_images = 40"
    with pytest.raises(ValueError, match=what):
        open_stream(str(folder), tmp_path, num_shards=7)


def test_a_kind_of_url_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="prepare.cache_url = 'nowhere://x': Protocol not known: nowhere"):
        open_stream("nowhere://x", tmp_path)


def test_a_store_whose_package_is_not_installed_is_explained(tmp_path, monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ImportError, match="s3://bucket/cache cannot be read .Install s3fs.*pip install s3fs"):
        open_stream("s3://bucket/cache", tmp_path)


def test_the_global_order_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="bind train.shuffle = 'shards'"):
        batches(open_stream(str(folder), tmp_path), batch_size=2, seed=0, start=0, stop=2)


def test_leaving_early_stops_fetching(folder, tmp_path):
    pytest.importorskip("aiohttp")
    with Server(folder) as server:
        stream = open_stream(server.url, tmp_path)
        reader = batches(stream, batch_size=13, seed=5, start=0, stop=30, shuffle="shards")
        next(reader)
        reader.close()
        assert all(future.done() or future.running() for future in stream._local.values())


def test_preparing_takes_what_the_codec_had_learned_from_the_cache(folder, codec, tmp_path):
    """So that neither images nor fits are needed where training runs."""
    fresh = tiny_codec()
    stream = prepare(
        codec=fresh, dataset=None, cache_dir=tmp_path, cache_url=str(folder), mirror=True, window_images=WINDOW
    )
    assert isinstance(stream, CacheStream) and len(stream) == COUNT
    assert fresh.fingerprint() == codec.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["streamed"]


def test_a_stream_of_another_codec_is_refused(folder, images, tmp_path):
    other = JointCodec(autoencoder=Pixels(channels=3))
    with pytest.raises(ValueError, match="was made with another codec"):
        prepare(codec=other, dataset=images, cache_dir=tmp_path, cache_url=str(folder), mirror=True)


def test_a_stream_of_other_images_or_without_the_mirrored_ones_is_refused(folder, images, codec, tmp_path):
    settings = {"codec": codec, "cache_dir": tmp_path, "cache_url": str(folder)}
    with pytest.raises(ValueError, match="was not made from the images of train.dataset"):
        prepare(dataset=images.without([0]), mirror=True, **settings)
    with pytest.raises(ValueError, match="was made with prepare.mirror = True: bind that, not False"):
        prepare(dataset=images, **settings)


def test_without_images_and_without_a_stream_there_is_nothing_to_prepare(codec, tmp_path):
    with pytest.raises(ValueError, match="bind train.dataset, or prepare.cache_url"):
        prepare(codec=codec, dataset=None, cache_dir=tmp_path)


@pytest.mark.parametrize("value", [0, -1.0, "64"])
def test_room_that_is_no_positive_number_is_refused(folder, codec, tmp_path, value):
    with pytest.raises(ValueError, match="^prepare.local_gib = .*: a number greater than 0 is needed$"):
        prepare(codec=codec, dataset=None, cache_dir=tmp_path, cache_url=str(folder), local_gib=value)
