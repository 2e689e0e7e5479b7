"""Writing a cache: equal to encoding each batch, with mirroring; interruptions, damage, non-finite values."""

import io
import json

import diffusers
import numpy as np
import pytest
import torch
from tqdm import tqdm

from redi.data.cache.cache import Cache
from redi.data.cache.write import write_cache
from redi.data.datasets.digits import Digits
from redi.data.loader import batches
from redi.models.autoencoders.pixels import Pixels
from redi.models.autoencoders.stable_vae import StableVAE
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA
from redi.models.reducers.random_projection import GaussianRandomProjection, SparseRandomProjection
from redi.runtime import shared_work

COUNT = 20
BATCH = 8


@pytest.fixture(scope="module")
def images():
    return Digits().without(range(COUNT, 1438))


@pytest.fixture(scope="module")
def encoder(images):
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=2, batch_size=16)
    encoder.fit(images)
    return encoder


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    """A random VAE with stride 2 in the format of diffusers."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    vae.save_pretrained(folder)
    return folder


def codec_of(encoder, images, reducer, autoencoder=None, **others):
    reducer.fit([encoder(images.batch(range(COUNT))["images"])])
    representation = Representation(encoder=encoder, reducer=reducer)
    return JointCodec(autoencoder=autoencoder or Pixels(channels=1), representations=[representation], **others)


@pytest.fixture(scope="module")
def codec(encoder, images):
    return codec_of(encoder, images, PCA(rank=3))


def write(folder, codec, images, **settings):
    return write_cache(folder, codec, images, **{"batch_size": BATCH, "rows_per_shard": BATCH} | settings)


AUTOENCODERS = {
    "grey": lambda folder: Pixels(channels=1),
    "colour": lambda folder: Pixels(channels=3),
    "sample": lambda folder: StableVAE(weights=str(folder)),
    "mean": lambda folder: StableVAE(weights=str(folder), posterior="mean"),
    "frozen": lambda folder: StableVAE(weights=str(folder), posterior="frozen"),
}
REDUCERS = {
    "pca": lambda: PCA(rank=2, store_rank=4),
    "whitened": lambda: PCA(rank=3, scale="whiten", standardize=True),
    "gaussian": lambda: GaussianRandomProjection(rank=3),
    "sparse": lambda: SparseRandomProjection(rank=3),
}


@pytest.mark.parametrize("mirrored", [False, True], ids=["plain", "mirrored"])
@pytest.mark.parametrize(
    ("autoencoder", "reducer"), [("grey", r) for r in REDUCERS] + [(a, "pca") for a in AUTOENCODERS if a != "grey"]
)
def test_x_from_the_cache_is_x_from_the_images_bit_for_bit(
    tmp_path, encoder, images, vae_folder, autoencoder, reducer, mirrored
):
    codec = codec_of(encoder, images, REDUCERS[reducer](), AUTOENCODERS[autoencoder](vae_folder))
    cache = write(tmp_path / "cache", codec, images, mirror=True)
    for start in range(0, COUNT, BATCH):  # with the batches that were encoded: others round differently
        positions = range(start, min(start + BATCH, COUNT))
        mirror = np.full(len(positions), mirrored)
        torch.manual_seed(start)  # the posterior is drawn by join
        found = codec.join(cache.batch(positions, mirror=mirror))
        torch.manual_seed(start)
        expected = codec.join(codec.precompute(images.batch(positions, mirror=mirror)["images"]))
        assert torch.equal(found, expected)


def test_a_mixed_batch_takes_each_sample_from_its_own_mirror(tmp_path, codec, images):
    cache = write(tmp_path / "cache", codec, images, mirror=True)
    mirror = np.arange(COUNT) % 3 == 0
    whole = {flag: cache.batch(range(COUNT), mirror=np.full(COUNT, flag)) for flag in (False, True)}
    mixed = cache.batch(range(COUNT), mirror=mirror)
    for name in ("image", "domain", "labels"):
        for i in range(COUNT):
            assert torch.equal(mixed[name][i], whole[bool(mirror[i])][name][i])


def test_the_mirror_image_is_encoded_and_not_the_features_mirrored(tmp_path, codec, images):
    cache = write(tmp_path / "cache", codec, images, mirror=True)
    plain, mirrored = cache.batch(range(COUNT)), cache.batch(range(COUNT), mirror=np.ones(COUNT, bool))
    assert torch.equal(mirrored["image"], plain["image"].flip(-1))
    assert not torch.allclose(mirrored["domain"].float(), plain["domain"].flip(-1).float(), atol=1e-2)


def test_the_unmirrored_half_is_the_unmirrored_cache(tmp_path, codec, images):
    both, plain = write(tmp_path / "a", codec, images, mirror=True), write(tmp_path / "b", codec, images)
    assert (both.mirrored, plain.mirrored) == (True, False)
    for name, tensor in plain.batch(range(COUNT)).items():
        assert torch.equal(both.batch(range(COUNT))[name], tensor)


def test_mirrors_of_a_cache_without_them_are_refused(tmp_path, codec, images):
    cache = write(tmp_path / "cache", codec, images)
    with pytest.raises(ValueError, match="has no mirrored images: set prepare.mirror = True"):
        cache.batch([0], mirror=np.array([True]))


@pytest.mark.parametrize("scale", ["raw", "unit_rms", "whiten"])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_rank_cut_from_a_wider_cache_is_the_cache_of_that_rank(tmp_path, encoder, images, rank, scale):
    wide = codec_of(encoder, images, PCA(rank=rank, store_rank=5, scale=scale))
    own = codec_of(encoder, images, PCA(rank=rank, scale=scale))
    x, expected = (
        codec.join(write(tmp_path / name, codec, images).batch(range(COUNT)))
        for name, codec in (("wide", wide), ("own", own))
    )
    torch.testing.assert_close(x, expected, rtol=2**-10, atol=2**-10 * float(expected.abs().max()))


def test_alignment_features_are_stored_for_both_mirrors(tmp_path, encoder, images):
    codec = codec_of(encoder, images, PCA(rank=2), alignment=encoder)
    cache = write(tmp_path / "cache", codec, images, mirror=True)
    positions, mirror = range(BATCH), np.ones(BATCH, bool)
    expected = encoder(images.batch(positions, mirror=mirror)["images"]).half()
    assert torch.equal(cache.batch(positions, mirror=mirror)["alignment"], expected)
    reader = batches(cache, batch_size=BATCH, seed=0, start=0, stop=4, ends={"alignment": 2})
    assert ["alignment" in batch for batch in reader] == [True, True, False, False]


class Interrupted(Digits):
    """Twenty digits; reading more than `count` raises KeyboardInterrupt."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def load(self, index):
        if self.count == 0:
            raise KeyboardInterrupt
        self.count -= 1
        return super().load(index)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def interrupted(tmp_path, codec):
    """A cache folder with two of three shards written, and its data set."""
    dataset = Interrupted(2 * BATCH + 1).without(range(COUNT, 1438))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cache", codec, dataset)
    return tmp_path / "cache", dataset


def test_an_interrupted_write_is_no_cache(interrupted):
    folder, _ = interrupted
    assert not folder.exists()
    work = folder.with_name(".cache.work")
    assert sorted(path.name for path in (work / "shards").iterdir()) == [
        "shard-00000.safetensors", "shard-00001.safetensors",
    ]  # fmt: skip
    assert not list(work.rglob("*.partial"))


def test_an_interrupted_write_goes_on_with_the_missing_shards(interrupted, codec, tmp_path, images):
    folder, dataset = interrupted
    dataset.count = COUNT - 2 * BATCH + 1  # one more is read to know the size
    write(folder, codec, dataset)
    assert dataset.count == 0
    write(tmp_path / "unbroken", codec, dataset_of(dataset))
    assert contents(folder) == contents(tmp_path / "unbroken")
    assert not folder.with_name(".cache.work").exists()


def dataset_of(dataset):
    dataset.count = 1000
    return dataset


@pytest.mark.parametrize("damage", ["altered", "deleted", "record"])
def test_a_finished_shard_that_was_damaged_meanwhile_is_encoded_again(interrupted, codec, tmp_path, damage):
    folder, dataset = interrupted
    work = folder.with_name(".cache.work")
    shard, record = work / "shards" / "shard-00001.safetensors", work / "records" / "shard-00001.json"
    if damage == "altered":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    elif damage == "deleted":
        shard.unlink()
    else:
        record.write_text("{")
    write(folder, codec, dataset_of(dataset))
    write(tmp_path / "unbroken", codec, dataset)
    assert contents(folder) == contents(tmp_path / "unbroken")


def test_other_shard_sizes_do_not_mix(interrupted, codec, tmp_path):
    folder, dataset = interrupted
    cache = write(folder, codec, dataset_of(dataset), rows_per_shard=5)
    assert [shard["rows"] for shard in cache.manifest["shards"]] == [5, 5, 5, 5]
    assert contents(folder) == contents(write(tmp_path / "new", codec, dataset, rows_per_shard=5).folder)


def test_a_shard_of_as_many_other_images_is_not_taken_for_the_one_of_its_number(interrupted, codec):
    folder, dataset = interrupted
    dataset.count = COUNT - 2 * BATCH
    with pytest.raises(KeyboardInterrupt):
        write(folder, codec, dataset)  # number 2 holds images 16 to 19; in shards of 4 it is images 8 to 11
    for part in (0, 1):
        (folder.with_name(".cache.work") / "records" / f"shard-0000{part}.json").unlink()
    cache = write(folder, codec, dataset_of(dataset), rows_per_shard=4)
    assert cache.names == dataset.names
    assert np.array_equal(cache.labels, dataset.labels)


@pytest.mark.parametrize("stray", ["shard-00007.safetensors", ".shard-00001.safetensors.0123.partial"])
def test_what_others_left_in_the_work_folder_is_no_part_of_the_cache(interrupted, codec, tmp_path, stray):
    folder, dataset = interrupted
    (folder.with_name(".cache.work") / "shards" / stray).write_bytes(b"left over")
    cache = write(folder, codec, dataset_of(dataset))
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "learned.safetensors", *(shard["file"] for shard in cache.manifest["shards"]),
    }  # fmt: skip


@pytest.fixture
def bars(monkeypatch):
    """The progress bars of `write_cache` and their positions."""
    made = []

    class Noted(tqdm):
        def __init__(self, **options):
            super().__init__(file=io.StringIO(), **options)
            self.stood_at = []
            made.append(self)

        def update(self, n=1):
            super().update(n)
            self.stood_at.append(self.n)

    monkeypatch.setattr(shared_work, "progress", Noted)
    return made


def test_the_bar_begins_at_the_images_that_an_interrupted_call_encoded(interrupted, codec, bars):
    folder, dataset = interrupted
    write(folder, codec, dataset_of(dataset), batch_size=2)
    assert bars[0].stood_at == [8, 16, 18, 20]
    assert (bars[0].initial, bars[0].total) == (16, 20)


def test_the_bar_of_rank_0_counts_the_images_that_others_encode(tmp_path, codec, images, bars, monkeypatch):
    def helped(self, batch, whole=codec.precompute):
        monkeypatch.undo()
        with pytest.raises(KeyboardInterrupt):  # after shard 1
            write(tmp_path / "cache", codec, Interrupted(BATCH + 1).without(range(COUNT, 1438)), rank=1, world_size=2)
        return whole(batch)

    monkeypatch.setattr(JointCodec, "precompute", helped)
    write(tmp_path / "cache", codec, images, world_size=2)
    assert bars[0].stood_at == [8, 16, 20]


def test_a_cache_that_is_there_is_opened_without_encoding(tmp_path, codec, images):
    write(tmp_path / "cache", codec, images)
    nothing = Interrupted(0).without(range(COUNT, 1438))
    assert len(write(tmp_path / "cache", codec, nothing)) == COUNT


class Failing(DomainEncoder):
    """Return `value` as a feature of every image with bright first pixels."""

    value = float("nan")

    def forward(self, images):
        features = super().forward(images).clone()
        features[images[:, 0, 0].float().sum(dim=1) > 200, 0, 0, 0] = self.value
        return features


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38], ids=["nan", "inf", "beyond_float16"])
def test_features_that_are_not_finite_are_refused_with_the_images_names(tmp_path, images, codec, value):
    encoder = Failing(width=8, depth=1, image_size=8)
    encoder.load_state_dict(codec.representations["domain"].encoder.state_dict())
    encoder.value = value
    broken = JointCodec(
        autoencoder=Pixels(channels=1),
        representations=[Representation(encoder=encoder, reducer=codec.representations["domain"].reducer, name="z")],
    )
    ink = images.batch(range(COUNT))["images"][:, 0, 0].float().sum(dim=1)
    bad = [name for name, amount in zip(images.names, ink.tolist(), strict=True) if amount > 200]
    assert 0 < len(bad) < COUNT
    with pytest.raises(ValueError, match="NaN or infinite values in the features .'z'. of Failing, .* PCA") as refused:
        write(tmp_path / "cache", broken, images, batch_size=COUNT, rows_per_shard=COUNT)
    for name in bad[:5]:
        assert name in str(refused.value)
    assert f"for {len(bad)} of the {COUNT} images" in str(refused.value)
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_labels_that_are_no_class_are_refused_before_encoding(tmp_path, codec):
    dataset = Interrupted(0).without(range(COUNT, 1438))
    dataset.num_classes = 5
    with pytest.raises(ValueError, match="labels run from 0 to 8, but Interrupted.num_classes = 5"):
        write(tmp_path / "cache", codec, dataset)


def test_a_full_disk_is_refused_after_the_first_batch(tmp_path, codec, images, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("redi.runtime.shared_work.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="not enough disk space for .*cache.work: .* GiB needed, .* prepare.cache_dir"):
        write(tmp_path / "cache", codec, images)


def test_the_manifest_holds_nothing_of_the_moment(tmp_path, codec, images):
    first, second = (write(tmp_path / name, codec, images) for name in "ab")
    assert json.dumps(first.manifest) == json.dumps(second.manifest)
    assert Cache(tmp_path / "a").cache_fingerprint == codec.cache_fingerprint()
