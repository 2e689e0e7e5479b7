"""The cache of encoded images against encoding them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from redi.core.artefact import BrokenArtefact
from redi.core.codec import JointCodec, Representation
from redi.data.cache import Cache, write_cache
from redi.data.datasets.digits import Digits
from redi.models.autoencoders.pixels import Pixels
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA

COUNT = 23


@pytest.fixture(scope="module")
def images():
    return Digits().without(range(COUNT, 1438))


@pytest.fixture(scope="module")
def codec(images):
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=2, batch_size=16)
    encoder.fit(images)
    reducer = PCA(rank=3)
    reducer.fit([encoder(images.batch(range(COUNT))["images"])])
    return JointCodec(
        autoencoder=Pixels(channels=1), representations=[Representation(encoder=encoder, reducer=reducer)]
    )


@pytest.fixture
def written(tmp_path, codec, images):
    return write_cache(tmp_path / "cache", codec, images, batch_size=4, rows_per_shard=10)


def assert_rows_are_encoded_images(cache, codec, images, positions):
    found, batch = cache.batch(positions), images.batch(positions)
    expected = codec.precompute(batch["images"]) | {"labels": batch["labels"]}
    assert set(found) == set(expected)
    assert torch.equal(found["image"], expected["image"])
    assert torch.equal(found["labels"], expected["labels"])
    assert found["domain"].dtype == torch.float16
    # Another batch size changes the order of summation in the encoder: at most one step of float16.
    torch.testing.assert_close(found["domain"], expected["domain"], rtol=2**-10, atol=1e-4)


@pytest.mark.parametrize("rows_per_shard", [1, 4, 10, 23, 100])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_rows_are_what_the_codec_gives_for_the_images(tmp_path, codec, images, rows_per_shard, batch_size):
    cache = write_cache(tmp_path / "cache", codec, images, batch_size=batch_size, rows_per_shard=rows_per_shard)
    assert len(cache) == COUNT
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == -(-COUNT // rows_per_shard)
    assert_rows_are_encoded_images(cache, codec, images, range(COUNT))


@pytest.mark.parametrize("positions", [[9, 10], [22, 0, 10, 9, 19, 20], [5, 5, 5], [22]])
def test_rows_come_in_the_order_asked_for_across_shards(written, codec, images, positions):
    assert_rows_are_encoded_images(written, codec, images, positions)


def test_positions_may_be_an_array(written):
    assert torch.equal(written.batch(np.array([3, 12]))["labels"], written.batch([3, 12])["labels"])


def test_joining_rows_is_encoding_the_images(written, codec, images):
    rows = written.batch(range(COUNT))
    x = codec.encode(images.batch(range(COUNT))["images"])
    torch.testing.assert_close(codec.join(rows), x, rtol=2**-10, atol=1e-4)


def test_a_batch_can_be_written_to_without_changing_the_cache(written):
    before = written.batch([0])["image"].clone()
    written.batch([0])["image"].zero_()
    assert torch.equal(written.batch([0])["image"], before)


def test_opening_again_gives_the_same_rows(written, tmp_path):
    again = Cache(tmp_path / "cache")
    for name, tensor in written.batch(range(COUNT)).items():
        assert torch.equal(again.batch(range(COUNT))[name], tensor)


def test_shards_are_ordinary_safetensors(written, tmp_path):
    shard = load_file(tmp_path / "cache" / "shard-00001.safetensors")
    assert torch.equal(shard["image"], written.batch(range(10, 20))["image"])


def test_the_manifest_says_what_was_encoded_with_what(written, codec, images):
    assert written.manifest["dataset_fingerprint"] == images.fingerprint()
    assert written.codec_fingerprint == codec.fingerprint()
    assert (written.num_classes, written.image_size) == (10, 8)
    assert [shard["rows"] for shard in written.manifest["shards"]] == [10, 10, 3]


def test_a_truncated_shard_is_refused(written, tmp_path):
    path = tmp_path / "cache" / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        BrokenArtefact, match="shard-00002.safetensors is missing or truncated: delete .*cache and run prepare"
    ):
        Cache(tmp_path / "cache")


def test_a_missing_shard_is_refused(written, tmp_path):
    (tmp_path / "cache" / "shard-00000.safetensors").unlink()
    with pytest.raises(BrokenArtefact, match="shard-00000.safetensors is missing"):
        Cache(tmp_path / "cache")


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_manifest_that_cannot_be_read_is_refused(written, tmp_path, content):
    path = tmp_path / "cache" / "manifest.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(BrokenArtefact, match="manifest.json cannot be read .* delete .*cache and run prepare again"):
        Cache(tmp_path / "cache")


def test_an_interrupted_write_leaves_nothing(tmp_path, codec):
    class Unplugged(Digits):
        def load(self, index):
            if index > 15:
                raise KeyboardInterrupt
            return super().load(index)

    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "cache", codec, Unplugged(), batch_size=4, rows_per_shard=4)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_is_json(written, tmp_path):
    assert json.loads((tmp_path / "cache" / "manifest.json").read_text()) == written.manifest
