"""Preparing a data set: the same work is done once, other settings get a place of their own."""

import os

import pytest
import torch

from redi.core.codec import JointCodec, Representation
from redi.data.cache import Cache
from redi.data.datasets.digits import Digits
from redi.data.preparation import prepare
from redi.models.autoencoders.pixels import Pixels
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA
from redi.models.reducers.random_projection import GaussianRandomProjection


class Unlabelled(Digits):
    """The same digits without their labels."""

    def __init__(self):
        super().__init__()
        self.num_classes, self.labels = 1, 0 * self.labels


@pytest.fixture(scope="module")
def images():
    return Digits().without(range(40, 1438))


def tiny_codec(reducer=None, **encoder):
    encoder = DomainEncoder(**({"width": 8, "depth": 1, "image_size": 8, "num_steps": 2, "batch_size": 16} | encoder))
    representations = [Representation(encoder=encoder, reducer=PCA(rank=3) if reducer is None else reducer)]
    return JointCodec(autoencoder=Pixels(channels=1), representations=representations)


def files(folder):
    """Every file with its inode and time: a file that was written again has others."""
    return {
        str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def folders(cache_dir, kind):
    return sorted(path.name for path in (cache_dir / kind).iterdir())


def test_preparing_fits_the_codec_and_encodes_every_image(tmp_path, images):
    codec = tiny_codec()
    prepared = prepare(codec=codec, dataset=images, cache_dir=tmp_path)
    assert codec.fitted
    assert isinstance(prepared, Cache)
    assert len(prepared) == 40
    assert prepared.codec_fingerprint == codec.fingerprint()


def test_without_a_cache_the_images_come_back(tmp_path, images):
    codec = tiny_codec()
    assert prepare(codec=codec, dataset=images, cache_dir=tmp_path, cache=False) is images
    assert codec.fitted
    assert not (tmp_path / "encoded").exists()


def test_preparing_twice_does_the_work_once(tmp_path, images):
    prepare(codec=tiny_codec(), dataset=images, cache_dir=tmp_path)
    before = files(tmp_path)
    prepare(codec=tiny_codec(), dataset=images, cache_dir=tmp_path)
    assert files(tmp_path) == before


def test_what_was_fitted_is_restored_equal(tmp_path, images):
    first, second = tiny_codec(), tiny_codec()
    prepare(codec=first, dataset=images, cache_dir=tmp_path)
    prepare(codec=second, dataset=images, cache_dir=tmp_path)
    restored = second.learned_state()
    assert set(restored) == set(first.learned_state())
    for name, tensor in first.learned_state().items():
        assert torch.equal(restored[name], tensor)
    assert second.fingerprint() == first.fingerprint()


def test_fitting_anew_in_another_folder_gives_the_same_codec(tmp_path, images):
    first, second = tiny_codec(), tiny_codec()
    prepare(codec=first, dataset=images, cache_dir=tmp_path / "a")
    torch.manual_seed(123)
    prepare(codec=second, dataset=images, cache_dir=tmp_path / "b")
    assert second.fingerprint() == first.fingerprint()


def test_a_restored_classifier_still_tells_classes(tmp_path, images):
    first, second = tiny_codec(), tiny_codec()
    for codec in (first, second):
        prepare(codec=codec, dataset=images, cache_dir=tmp_path)
    batch = images.batch(range(5))["images"]
    logits = [codec.representations["domain"].encoder.logits(batch) for codec in (first, second)]
    assert torch.equal(*logits)


def test_another_rank_gets_another_cache_from_the_same_fit(tmp_path, images):
    """One PCA fit holds every rank, so only what is encoded differs."""
    for rank in (2, 3):
        codec = tiny_codec(PCA(rank=rank))
        cache = prepare(codec=codec, dataset=images, cache_dir=tmp_path)
        assert cache.batch([0])["domain"].shape[1] == rank
    assert len(folders(tmp_path, "reducers")) == 1
    assert len(folders(tmp_path, "encoded")) == 2


@pytest.mark.parametrize(
    "setting", [{"seed": 1}, {"num_steps": 3}, {"width": 12}, {"learning_rate": 1e-3}, {"objective": "contrastive"}]
)
def test_another_encoder_setting_gets_another_fit_and_another_cache(tmp_path, images, setting):
    prepare(codec=tiny_codec(), dataset=images, cache_dir=tmp_path)
    prepare(codec=tiny_codec(**setting), dataset=images, cache_dir=tmp_path)
    assert [len(folders(tmp_path, kind)) for kind in ("encoders", "reducers", "encoded")] == [2, 2, 2]


@pytest.mark.parametrize(
    "reducer", [lambda: PCA(rank=3, standardize=True), lambda: GaussianRandomProjection(rank=3)], ids=["std", "random"]
)
def test_another_reducer_gets_another_fit_and_another_cache(tmp_path, images, reducer):
    prepare(codec=tiny_codec(), dataset=images, cache_dir=tmp_path)
    prepare(codec=tiny_codec(reducer()), dataset=images, cache_dir=tmp_path)
    assert [len(folders(tmp_path, kind)) for kind in ("encoders", "reducers", "encoded")] == [1, 2, 2]


def test_other_images_get_another_fit_and_another_cache(tmp_path, images):
    prepare(codec=tiny_codec(), dataset=images, cache_dir=tmp_path)
    prepare(codec=tiny_codec(), dataset=images.without([0]), cache_dir=tmp_path)
    assert [len(folders(tmp_path, kind)) for kind in ("encoders", "reducers", "encoded")] == [2, 2, 2]


def test_a_reducer_is_fitted_anew_to_other_images_under_the_same_encoder(tmp_path, images):
    encoder = tiny_codec().representations["domain"].encoder
    encoder.fit(images)
    for dataset in (images, images.without(range(20))):
        representation = Representation(encoder=encoder, reducer=PCA(rank=3))
        codec = JointCodec(autoencoder=Pixels(channels=1), representations=[representation])
        prepare(codec=codec, dataset=dataset, cache_dir=tmp_path, num_fit_images=10)
    assert len(folders(tmp_path, "reducers")) == 2


def test_the_reducer_is_fitted_to_a_seeded_sample(tmp_path, images):
    def mean(**settings):
        codec = tiny_codec()
        prepare(codec=codec, dataset=images, cache_dir=tmp_path, cache=False, **settings)
        return codec.representations["domain"].reducer.mean

    assert torch.equal(mean(num_fit_images=10), mean(num_fit_images=10))
    assert not torch.equal(mean(num_fit_images=10), mean(num_fit_images=10, seed=1))
    assert not torch.equal(mean(num_fit_images=10), mean(num_fit_images=20))
    assert torch.equal(mean(num_fit_images=40), mean(num_fit_images=1000))  # all there are


def test_the_batch_size_changes_the_fit_by_rounding_alone(tmp_path, images):
    means = []
    for batch_size in (7, 40):
        codec = tiny_codec()
        prepare(codec=codec, dataset=images, cache_dir=tmp_path / str(batch_size), cache=False, batch_size=batch_size)
        means.append(codec.representations["domain"].reducer.mean)
    torch.testing.assert_close(*means, rtol=1e-4, atol=1e-5)


def test_labelled_images_train_a_classifier(tmp_path, images):
    codec = tiny_codec()
    prepare(codec=codec, dataset=images, cache_dir=tmp_path)
    assert codec.representations["domain"].encoder.is_classifier


def test_unlabelled_images_train_by_contrast(tmp_path):
    codec = tiny_codec()
    cache = prepare(codec=codec, dataset=Unlabelled().without(range(40, 1438)), cache_dir=tmp_path)
    assert codec.fitted
    assert not codec.representations["domain"].encoder.is_classifier
    assert cache.num_classes == 1


def test_a_codec_that_is_fitted_is_left_as_it_is(tmp_path, images):
    codec = tiny_codec()
    prepare(codec=codec, dataset=images, cache_dir=tmp_path)
    before = codec.fingerprint()
    prepare(codec=codec, dataset=images.without(range(10)), cache_dir=tmp_path)
    assert codec.fingerprint() == before
    assert len(folders(tmp_path, "encoders")) == 1


def test_the_image_alone_needs_no_fit(tmp_path, images):
    codec = JointCodec(autoencoder=Pixels(channels=1))
    cache = prepare(codec=codec, dataset=images, cache_dir=tmp_path)
    assert set(cache.batch([0])) == {"image", "labels"}
    assert not (tmp_path / "encoders").exists()


def test_the_cache_folder_is_that_of_the_environment(tmp_path, images, monkeypatch):
    monkeypatch.setitem(os.environ, "REDI_CACHE", str(tmp_path / "mine"))
    prepare(codec=tiny_codec(), dataset=images)
    assert folders(tmp_path, "mine") == ["encoded", "encoders", "reducers"]


def test_a_damaged_fit_is_refused_with_its_name(tmp_path, images):
    prepare(codec=tiny_codec(), dataset=images, cache_dir=tmp_path)
    (path,) = (tmp_path / "reducers").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="reducers/PCA-.*state.safetensors has .*: truncated.*delete .*PCA-.* again"):
        prepare(codec=tiny_codec(), dataset=images, cache_dir=tmp_path)


@pytest.mark.parametrize("fails_at", ["fit", "encode"])
def test_an_interruption_leaves_nothing_that_would_be_taken_for_whole(tmp_path, images, fails_at):
    class Interrupted(Digits):
        def load(self, index):
            if self.count == 0:
                raise KeyboardInterrupt
            self.count -= 1
            return super().load(index)

    dataset = Interrupted().without(range(40, 1438))
    # The encoder reads 40 images, the reducer 40, the cache 40 and a few to learn their size.
    dataset.count = 60 if fails_at == "fit" else 100
    with pytest.raises(KeyboardInterrupt):
        prepare(codec=tiny_codec(), dataset=dataset, cache_dir=tmp_path, batch_size=8)
    left = {
        kind: len(list((tmp_path / kind).iterdir())) for kind in ("reducers", "encoded") if (tmp_path / kind).exists()
    }
    assert sum(left.values()) == (0 if fails_at == "fit" else 1)
    dataset.count = 1000
    assert len(prepare(codec=tiny_codec(), dataset=dataset, cache_dir=tmp_path, batch_size=8)) == 40
