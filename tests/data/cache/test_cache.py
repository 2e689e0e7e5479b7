"""Reading a cache of encoded images, and errors for invalid ones."""

import json
import os
import re
import resource

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from redi.data.cache.cache import Cache, manifest_sha256
from redi.data.cache.write import write_cache
from redi.data.datasets.digits import Digits
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA
from redi.models.reducers.random_projection import GaussianRandomProjection
from redi.runtime.checksums import BrokenArtefact

COUNT = 23


@pytest.fixture(scope="module")
def images():
    return Digits().without(range(COUNT, 1438))


def trained(**settings):
    encoder = DomainEncoder(**{"width": 8, "depth": 1, "image_size": 8, "num_steps": 2, "batch_size": 16} | settings)
    encoder.fit(Digits().without(range(COUNT, 1438)))
    return encoder


def fitted_codec(encoder, images, reducer, autoencoder=None):
    reducer.fit([encoder(images.batch(range(COUNT))["images"])])
    representation = Representation(encoder=encoder, reducer=reducer)
    return JointCodec(autoencoder=autoencoder or Pixels(channels=1), representations=[representation])


@pytest.fixture(scope="module")
def codec(images):
    return fitted_codec(trained(), images, PCA(rank=3))


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
    assert len(list((tmp_path / "cache").glob("shard-*.safetensors"))) == -(-COUNT // rows_per_shard)
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


def test_the_mapped_pages_cannot_be_written_to(written):
    for array in written.shards[1].values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.fixture
def thirty_more_files():
    """Limit this process to thirty more open files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(number) for number in os.listdir("/dev/fd")}
    limit = [number for number in range(10_000) if number not in used][30]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_cache_may_have_more_shards_than_a_process_may_open_files(tmp_path, thirty_more_files):
    images = Digits().without(range(50, 1438))
    codec = JointCodec(autoencoder=Pixels(channels=1))
    cache = write_cache(tmp_path / "cache", codec, images, rows_per_shard=1)
    assert len(cache.manifest["shards"]) == 50
    everywhere = range(len(images))
    assert torch.equal(cache.batch(everywhere)["image"], codec.precompute(images.batch(everywhere)["images"])["image"])


def test_opening_again_gives_the_same_rows(written, tmp_path):
    again = Cache(tmp_path / "cache")
    for name, tensor in written.batch(range(COUNT)).items():
        assert torch.equal(again.batch(range(COUNT))[name], tensor)


def test_shards_are_ordinary_safetensors(written, tmp_path):
    shard = load_file(tmp_path / "cache" / "shard-00001.safetensors")
    assert torch.equal(shard["image"], written.batch(range(10, 20))["image"])


def test_the_manifest_says_what_was_encoded_with_what(written, codec, images):
    assert written.manifest["dataset_fingerprint"] == images.fingerprint()
    assert written.cache_fingerprint == codec.cache_fingerprint()
    assert (written.num_classes, written.image_size) == (10, 8)
    assert [shard["rows"] for shard in written.manifest["shards"]] == [10, 10, 3]


def test_a_truncated_shard_is_refused(written, tmp_path):
    path = tmp_path / "cache" / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    what = r"shard-00002.safetensors has \d+ bytes instead of \d+: delete .*cache and rerun prepare"
    with pytest.raises(BrokenArtefact, match=what):
        Cache(tmp_path / "cache")


def test_a_missing_shard_is_refused(written, tmp_path):
    (tmp_path / "cache" / "shard-00000.safetensors").unlink()
    with pytest.raises(BrokenArtefact, match="shard-00000.safetensors is missing"):
        Cache(tmp_path / "cache")


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_manifest_that_cannot_be_read_is_refused(written, tmp_path, content):
    path = tmp_path / "cache" / "manifest.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(BrokenArtefact, match="manifest.json cannot be read .* delete .*cache and rerun prepare"):
        Cache(tmp_path / "cache")


def test_the_manifest_is_json(written, tmp_path):
    assert json.loads((tmp_path / "cache" / "manifest.json").read_text()) == written.manifest


@pytest.mark.parametrize("positions", [[-1], [0, COUNT]])
def test_positions_outside_are_refused(written, positions):
    with pytest.raises(IndexError, match="outside a cache of 23 rows"):
        written.batch(positions)


def test_the_names_are_those_of_the_images(written, images):
    assert written.names == images.names


def test_the_labels_are_those_of_the_images(written, images):
    assert np.array_equal(written.labels, images.labels)


def test_the_manifest_says_which_preprocessing_and_versions_it_was_made_with(written, images):
    assert written.manifest["dataset"]["preprocessing"] == images.preprocessing.provenance()
    assert written.manifest["versions"]["torch"] == torch.__version__
    assert written.manifest["tensors"]["domain"] == {"dtype": "F16", "shape": [3, 2, 2]}


def test_a_whole_cache_passes_verification(written):
    written.verify()


def test_verification_names_the_shard_in_which_a_byte_changed(written, tmp_path):
    path = tmp_path / "cache" / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BrokenArtefact, match="shard-00001.safetensors were altered .* rerun prepare"):
        Cache(tmp_path / "cache").verify()


def rewrite_header(path, change):
    """Change the JSON header of a safetensors file without its length (the format allows trailing spaces)."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= length
    path.write_bytes(content[:8] + text.ljust(length) + content[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["image"].update(dtype="Q9"), "Error while deserializing header: .*unknown variant `Q9`"),
        (lambda h: h["image"].update(data_offsets=[0, 9999]), "Error while deserializing header: invalid"),
        (lambda h: h["image"].update(data_offsets=[64, 0]), "Error while deserializing header: invalid"),
        (lambda h: h["image"].update(shape=[9, 1, 8, 8]), "Error while deserializing header: invalid shape"),
        (lambda h: h["image"].update(shape=[10, 8, 8, 1]), "'image' is uint8 .10, 8, 8, 1., but the manifest says U8"),
        (lambda h: h["image"].pop("dtype"), "Error while deserializing header: .*missing field `dtype`"),
        (lambda h: h.pop("names.json"), "Error while deserializing header: .*"),
        (lambda h: h.pop("labels"), "Error while deserializing header: .*"),
    ],
)
def test_a_shard_with_an_altered_header_is_refused(written, tmp_path, change, message):
    path = tmp_path / "cache" / "shard-00001.safetensors"
    rewrite_header(path, change)
    with pytest.raises(BrokenArtefact, match=f"shard-00001.safetensors is damaged: {message}.*rerun prepare"):
        Cache(tmp_path / "cache")


@pytest.mark.parametrize(
    ("start", "message"), [(b"\xff" * 8, "header too large"), (b"\x05" + bytes(7), "invalid JSON")]
)
def test_a_shard_whose_header_has_an_absurd_length_is_refused(written, tmp_path, start, message):
    path = tmp_path / "cache" / "shard-00001.safetensors"
    path.write_bytes(start + path.read_bytes()[8:])
    with pytest.raises(BrokenArtefact, match=f"shard-00001.safetensors is damaged: .*{message}"):
        Cache(tmp_path / "cache")


def test_names_that_are_not_those_of_the_rows_are_refused(written, tmp_path):
    path = tmp_path / "cache" / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes().replace(b"digit", b'"it",', 1))
    with pytest.raises(BrokenArtefact, match="shard-00001.safetensors does not have the names of its 10 images"):
        _ = Cache(tmp_path / "cache").names


def rewrite_manifest(folder, **entries):
    """Change entries of a manifest and update its checksum."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | entries
    path.write_text(json.dumps(manifest | {"sha256": manifest_sha256(manifest)}))


def test_a_label_that_is_no_class_is_refused(written, tmp_path):
    rewrite_manifest(tmp_path / "cache", num_classes=5)
    with pytest.raises(BrokenArtefact, match=r"has labels outside \[0, 5\), first \d at row \d+"):
        Cache(tmp_path / "cache")


@pytest.mark.parametrize(("written_in", "shown"), [(1, 1), (3, 3), (None, None)])
def test_a_manifest_of_another_format_is_refused(written, tmp_path, written_in, shown):
    rewrite_manifest(tmp_path / "cache", format=written_in)
    with pytest.raises(BrokenArtefact, match=f"has format {shown}, but this version of redi reads 2"):
        Cache(tmp_path / "cache")


def test_a_manifest_that_was_altered_is_refused(written, tmp_path):
    path = tmp_path / "cache" / "manifest.json"
    path.write_text(path.read_text().replace('"num_classes": 10', '"num_classes": 11'))
    with pytest.raises(BrokenArtefact, match="manifest.json was altered"):
        Cache(tmp_path / "cache")


def test_a_manifest_that_lacks_an_entry_is_refused(written, tmp_path):
    path = tmp_path / "cache" / "manifest.json"
    path.write_text(json.dumps({key: value for key, value in written.manifest.items() if key != "codec"}))
    with pytest.raises(BrokenArtefact, match="manifest.json lacks codec"):
        Cache(tmp_path / "cache")


def test_the_codec_that_it_was_made_with_passes_the_check(written, codec):
    written.check(codec)


def test_a_codec_of_another_rank_within_the_stored_one_passes_the_check(tmp_path, codec, images):
    encoder = codec.representations["domain"].encoder
    made, used = (fitted_codec(encoder, images, PCA(rank=rank, store_rank=4)) for rank in (4, 2))
    write_cache(tmp_path / "cache", made, images).check(used)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: (Pixels(channels=3), e, PCA(rank=3)), r"codec.autoencoder.channels: 1 -> 3"),
        (lambda e: (Pixels(channels=1), e, PCA(rank=2)), r"reducer.store_rank: 3 -> 2"),
        (lambda e: (Pixels(channels=1), e, PCA(rank=3, standardize=True)), "reducer.standardize: false -> true"),
        (lambda e: (Pixels(channels=1), trained(num_steps=3), PCA(rank=3)), "encoder.num_steps: 2 -> 3"),
        (lambda e: (Pixels(channels=1), e, GaussianRandomProjection(rank=3)), r'code.domain.reducer.class: ".*PCA"'),
    ],
    ids=["autoencoder", "rank", "settings", "encoder", "reducer"],
)
def test_another_codec_is_refused_and_what_differs_is_named(written, codec, images, change, message):
    autoencoder, encoder, reducer = change(codec.representations["domain"].encoder)
    with pytest.raises(ValueError, match=r"was computed with another codec \(cache -> this codec\)") as refused:
        written.check(fitted_codec(encoder, images, reducer, autoencoder))
    assert re.search(message, str(refused.value))


def test_a_codec_without_the_stored_representation_is_refused(written):
    with pytest.raises(ValueError, match="codec.representations.domain: .* -> null"):
        written.check(JointCodec(autoencoder=Pixels(channels=1)))
