"""A streamed cache returns the same rows as a cache on disk, in bounded space, despite failures of the store."""

import json
import shutil
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
from redi.data.storage import object_store
from redi.data.storage.object_store import Unreachable
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


def shards(server):
    return [name for name in server.names() if name.startswith("shard")]


def open_stream(url, tmp_path, num_shards=12, **settings):
    """Open a stream with space for this number of shards."""
    settings = {"max_bytes": num_shards * BYTES, "window": WINDOW} | settings
    return CacheStream(url, folder=tmp_path / "local", **settings)


def local(folder):
    cache = Cache(folder)
    cache.blocks = Blocks(cache.starts, WINDOW)
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
        yield request.getfixturevalue("serve")(folder).url


def test_batches_are_bit_equal_to_those_of_the_cache_on_disk(url, folder, tmp_path):
    """Return the batches of two epochs, with mirroring."""
    assert_equal(read(open_stream(url, tmp_path)), read(local(folder)))


@pytest.mark.parametrize("start", [1, 3, 14, 29])
def test_a_resumed_run_continues_with_the_same_batches(folder, tmp_path, start):
    assert_equal(read(open_stream(str(folder), tmp_path), start), read(local(folder))[start:])


def test_a_resumed_run_fetches_no_more_than_its_windows(serve, folder, tmp_path):
    server = serve(folder)
    read(open_stream(server.url, tmp_path), start=7, stop=8)
    assert 1 <= len(shards(server)) <= 4 + 4 + 1  # the rows 91 to 103 lie in one window or two, one more is ahead


def test_each_shard_is_fetched_once_per_epoch(serve, folder, tmp_path):
    server = serve(folder)
    read(open_stream(server.url, tmp_path, num_shards=10), stop=30)  # 390 of two epochs' 400 rows
    counts = [shards(server).count(path.name) for path in folder.glob("shard-*")]
    assert max(counts) <= 2  # by far not all 20 fit, so most are needed twice
    assert sum(counts) > 30


def test_what_fits_as_a_whole_is_fetched_once_in_all(serve, folder, tmp_path):
    server = serve(folder)
    read(open_stream(server.url, tmp_path, num_shards=20), stop=62)
    assert sorted(shards(server)) == sorted(path.name for path in folder.glob("shard-*"))


def mapped(tmp_path):
    """Return the inodes of the shards that this process maps, from /proc."""
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
    assert sum(stream.sizes[n] for n in stream.local) == stream.local_bytes <= 10 * BYTES
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


def test_failed_requests_are_made_again(serve, folder, tmp_path):
    server = serve(folder)
    server.failures = 2
    assert_equal(read(open_stream(server.url, tmp_path), stop=9), read(local(folder), stop=9))


def test_a_shard_that_came_cut_short_is_fetched_again(serve, folder, tmp_path):
    server = serve(folder)
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
        (Path.unlink, r"does not exist \(FileNotFoundError"),
        (damage, "unreachable in 4 attempts.*its SHA-256 differs from the manifest: it is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), r"unreachable in 4 .*received \d+ bytes instead of"),
    ],
    ids=["missing", "damaged", "truncated"],
)
def test_a_shard_that_stays_bad_is_named_with_url_cause_and_remedy(copied, tmp_path, harm, what):
    harm(copied / "shard-00012.safetensors")
    message = rf"published/shard-00012.safetensors.*{what}.*copy the complete cache to .*published"
    with pytest.raises(Unreachable, match=message):
        read(open_stream(str(copied), tmp_path))


def test_a_server_without_the_right_to_read_is_not_asked_again(serve, folder, tmp_path):
    server = serve(folder)
    server.failures, server.status = 99, 403
    with pytest.raises(Unreachable, match="manifest.json: access denied .*403.*set the credentials"):
        open_stream(server.url, tmp_path)
    assert server.names() == ["manifest.json"]


def test_a_url_without_a_cache_is_refused_at_once(serve, folder, tmp_path):
    server = serve(folder)
    with pytest.raises(Unreachable, match=r"elsewhere/manifest.json does not exist .*Check that the URL is the"):
        open_stream(f"{server.url}/elsewhere", tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("content", ["{", '{"format": 1}'])
def test_a_manifest_that_is_none_is_refused(copied, tmp_path, content):
    (copied / "manifest.json").write_text(content)
    with pytest.raises(BrokenArtefact, match=r"published/manifest.json .*copy the complete cache to .*published again"):
        open_stream(str(copied), tmp_path)


def test_a_manifest_that_names_files_elsewhere_is_refused(copied, tmp_path):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["shards"][0]["file"] = "../../secret"
    (copied / "manifest.json").write_text(json.dumps(manifest | {"sha256": manifest_sha256(manifest)}))
    with pytest.raises(BrokenArtefact, match="manifest.json has invalid entries and was not written by redi"):
        open_stream(str(copied), tmp_path)


def test_a_learned_state_that_was_altered_is_refused(copied, tmp_path):
    path = copied / "learned.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BrokenArtefact, match="learned.safetensors was altered after it was written: copy the"):
        open_stream(str(copied), tmp_path).learned_state()


def test_too_little_room_is_refused_before_anything_is_fetched(folder, tmp_path):
    what = r"prepare.local_gib = 0.00 is too small .* Raise it, or lower prepare.window_images = 40"
    with pytest.raises(ValueError, match=what):
        open_stream(str(folder), tmp_path, num_shards=7)


def test_a_kind_of_url_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="prepare.cache_url = 'nowhere://x': Protocol not known: nowhere"):
        open_stream("nowhere://x", tmp_path)


def test_a_store_whose_package_is_not_installed_is_explained(tmp_path, monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(object_store, "url_to_fs", missing)
    with pytest.raises(ImportError, match="s3://bucket/cache cannot be read .Install s3fs.*pip install s3fs"):
        open_stream("s3://bucket/cache", tmp_path)


def test_http_without_its_package_names_the_extra_of_this_distribution(tmp_path, monkeypatch):
    def missing(url):
        raise ImportError("requires aiohttp")

    monkeypatch.setattr(object_store, "url_to_fs", missing)
    with pytest.raises(ImportError, match=r"pip install 'redi-diffusion\[stream\]'$"):
        open_stream("https://example.org/cache", tmp_path)


def test_the_global_order_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="set train.shuffle = 'shards'"):
        batches(open_stream(str(folder), tmp_path), batch_size=2, seed=0, start=0, stop=2)


def test_leaving_early_stops_fetching(serve, folder, tmp_path):
    server = serve(folder)
    stream = open_stream(server.url, tmp_path)
    reader = batches(stream, batch_size=13, seed=5, start=0, stop=30, shuffle="shards")
    next(reader)
    reader.close()
    assert all(future.done() or future.running() for future in stream.local.values())


def test_preparing_takes_what_the_codec_had_learned_from_the_cache(folder, codec, tmp_path):
    """Training then needs neither images nor fits."""
    fresh = tiny_codec()
    stream = prepare(
        codec=fresh, dataset=None, cache_dir=tmp_path, cache_url=str(folder), mirror=True, window_images=WINDOW
    )
    assert isinstance(stream, CacheStream) and len(stream) == COUNT
    assert fresh.fingerprint() == codec.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["streamed"]


def test_a_stream_of_another_codec_is_refused(folder, images, tmp_path):
    other = JointCodec(autoencoder=Pixels(channels=3))
    with pytest.raises(ValueError, match="was computed with another codec"):
        prepare(codec=other, dataset=images, cache_dir=tmp_path, cache_url=str(folder), mirror=True)


def test_a_stream_of_other_images_or_without_the_mirrored_ones_is_refused(folder, images, codec, tmp_path):
    settings = {"codec": codec, "cache_dir": tmp_path, "cache_url": str(folder)}
    with pytest.raises(ValueError, match="was not computed from the images of train.dataset"):
        prepare(dataset=images.without([0]), mirror=True, **settings)
    with pytest.raises(ValueError, match="was computed with prepare.mirror = True, not False: set"):
        prepare(dataset=images, **settings)


def test_without_images_and_without_a_stream_there_is_nothing_to_prepare(codec, tmp_path):
    with pytest.raises(ValueError, match="pass dataset= .train.dataset., or prepare.cache_url"):
        prepare(codec=codec, dataset=None, cache_dir=tmp_path)


@pytest.mark.parametrize("value", [0, -1.0, "64"])
def test_room_that_is_no_positive_number_is_refused(folder, codec, tmp_path, value):
    with pytest.raises(ValueError, match="^prepare.local_gib = .* must be a number greater than 0$"):
        prepare(codec=codec, dataset=None, cache_dir=tmp_path, cache_url=str(folder), local_gib=value)
