"""Damaged files of `prepare` are reported and regenerated; so are files deleted while they are read."""

import logging
import shutil
import signal
import sys
import textwrap
import threading

import pytest
import torch

from redi.data.cache import verify
from redi.data.cache.cache import Cache
from redi.data.cache.prepare import prepare
from redi.data.datasets.digits import Digits
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA

COUNT = 40


class Counted(Digits):
    """Digits that count the images read."""

    count = 0

    def batch(self, positions, mirror=None):
        Counted.count += len(positions)
        return super().batch(positions, mirror)


@pytest.fixture(scope="module")
def images():
    return Counted().without(range(COUNT, 1438))


def prepared(folder, images, **settings):
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=2, batch_size=16)
    representations = [Representation(encoder=encoder, reducer=PCA(rank=3))]
    codec = JointCodec(autoencoder=Pixels(channels=1), representations=representations)
    return codec, prepare(codec=codec, dataset=images, cache_dir=folder, rows_per_shard=8, **settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("made")
    prepared(folder, images)
    return folder, contents(folder)


@pytest.fixture
def whole(made, tmp_path):
    """A new cache folder and its content."""
    shutil.copytree(made[0], tmp_path / "cache")
    Counted.count = 0
    return tmp_path / "cache", made[1]


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".verified"
    }


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:-1])
    elif how == "half":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        content[{"first bit": 0, "middle bit": len(content) // 2, "last bit": -1}[how]] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["gone", "cut", "empty", "first bit", "middle bit", "last bit"])
@pytest.mark.parametrize("place", ["encoders/*/state.safetensors", "reducers/*/state.safetensors"])
def test_a_damaged_fit_is_said_and_made_again(whole, images, caplog, place, how):
    folder, before = whole
    (path,) = folder.glob(place)
    damage(path, how)
    codec, cache = prepared(folder, images)
    assert "fitting again, because the stored result is damaged" in caplog.text and path.name in caplog.text
    assert codec.fitted and len(cache) == COUNT
    assert contents(folder) == before


@pytest.mark.parametrize("how", ["gone", "half", "empty", "middle bit"])
@pytest.mark.parametrize("place", ["encoders/*/record.json", "reducers/*/record.json"])
def test_a_fit_with_a_damaged_record_is_made_again(whole, images, caplog, place, how):
    folder, before = whole
    (path,) = folder.glob(place)
    damage(path, how)
    prepared(folder, images)
    assert "fitting again" in caplog.text and "record.json" in caplog.text
    assert contents(folder) == before


@pytest.mark.parametrize("how", ["gone", "cut", "empty", "first bit", "middle bit", "last bit"])
def test_a_damaged_shard_is_encoded_again_and_no_other(whole, images, caplog, how):
    folder, before = whole
    (path,) = folder.glob("encoded/*/shard-00002.safetensors")
    damage(path, how)
    prepared(folder, images)
    assert "encoding damaged or missing shards of" in caplog.text and "shard-00002" in caplog.text
    assert "shard-00001" not in caplog.text
    assert Counted.count <= 8 + 1  # one more is read to know the size
    assert contents(folder) == before


@pytest.mark.parametrize("how", ["gone", "half", "empty", "middle bit"])
def test_with_a_damaged_manifest_all_is_encoded_again(whole, images, caplog, how):
    folder, before = whole
    (path,) = folder.glob("encoded/*/manifest.json")
    damage(path, how)
    prepared(folder, images)
    assert "encoding all images again, because the manifest" in caplog.text and "manifest.json" in caplog.text
    assert contents(folder) == before


def test_every_bit_of_a_manifest_counts(whole):
    """A flipped bit is detected, or leaves every entry unchanged."""
    folder, _ = whole
    (path,) = folder.glob("encoded/*/manifest.json")
    manifest, content = Cache(path.parent).manifest, path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ (1 << position % 8)]) + content[position + 1 :]
        )
        try:
            found = verify.read_manifest(path)
        except ValueError:  # BrokenArtefact
            continue
        assert {key: found.get(key) for key in manifest} == manifest, position


def counted_hashes(monkeypatch):
    read = []
    monkeypatch.setattr(verify, "sha256", lambda path: read.append(path.name) or hashed(path))
    return read


hashed = verify.sha256


def test_the_shards_are_divided_over_the_processes_and_read_once_at_a_start(whole, images, monkeypatch):
    folder, _ = whole
    read = counted_hashes(monkeypatch)
    (cache,) = (folder / "encoded").iterdir()
    ranks = [threading.Thread(target=verify.verify_cache, args=(cache,), kwargs={"rank": i, "world_size": 3})
             for i in range(3)]  # fmt: skip
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert sorted(read) == [f"shard-{i:05d}.safetensors" for i in range(5)]
    prepared(folder, images)  # a process that comes late, or is started again at once
    assert len(read) == 5
    prepared(folder, images, verify=False)
    assert len(read) == 5


@pytest.mark.parametrize("how", ["gone", "cut", "last bit"])
def test_what_was_written_to_since_is_read_again_at_once(whole, images, caplog, how):
    folder, before = whole
    prepared(folder, images)
    damage(next(folder.glob("encoded/*/shard-00003.safetensors")), how)
    prepared(folder, images)
    assert "shard-00003" in caplog.text
    assert contents(folder) == before


def test_a_later_start_reads_them_again(whole, images, monkeypatch):
    folder, _ = whole
    read = counted_hashes(monkeypatch)
    prepared(folder, images)
    monkeypatch.setattr(verify, "FRESH_SECONDS", -1.0)  # also what clocks that differ look like
    prepared(folder, images)
    assert len(read) == 10


def test_without_verification_damage_is_not_looked_for(whole, images):
    folder, _ = whole
    (path,) = folder.glob("encoded/*/shard-00002.safetensors")
    damage(path, "last bit")
    _, cache = prepared(folder, images, verify=False)
    with pytest.raises(ValueError, match="shard-00002.safetensors were altered"):
        cache.verify()


def test_an_interrupted_repair_goes_on(whole, images, monkeypatch):
    folder, before = whole
    for number in (1, 3):
        damage(next(folder.glob(f"encoded/*/shard-0000{number}.safetensors")), "last bit")

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("redi.data.cache.write.with_names", interrupted)
        prepared(folder, images)
    prepared(folder, images)
    assert contents(folder) == before


def test_a_shard_that_vanishes_while_it_is_read_stops_nothing_and_is_encoded_at_the_next_start(whole, images, caplog):
    folder, before = whole
    _, cache = prepared(folder, images)
    expected = cache.batch(range(COUNT))
    next(folder.glob("encoded/*/shard-00001.safetensors")).unlink()
    assert torch.equal(cache.batch(range(COUNT))["image"], expected["image"])  # mapped files stay until they are let go
    prepared(folder, images)
    assert "shard-00001" in caplog.text
    assert contents(folder) == before


READ_ON = """
    import faulthandler, os, sys
    from redi.data.cache.cache import Cache
    faulthandler.enable()
    cache = Cache(sys.argv[1])
    os.truncate(cache.folder / "shard-00001.safetensors", 0)
    print("reading", flush=True)
    cache.batch(range(len(cache)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what reading beyond the end of a mapped file does")
def test_a_shard_that_is_cut_short_while_it_is_read_ends_the_process_and_is_encoded_at_the_next_start(
    whole, images, caplog, python
):
    folder, before = whole
    (cache,) = (folder / "encoded").iterdir()
    done = python("-c", textwrap.dedent(READ_ON), cache)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "reading\n")
    assert "Bus error" in done.stderr and "in batch" in done.stderr
    with caplog.at_level(logging.WARNING):
        prepared(folder, images)
    assert "shard-00001" in caplog.text
    assert contents(folder) == before
