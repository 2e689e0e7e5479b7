"""Preparing a data set: equal work is done once, other settings are stored separately."""

import os

import numpy as np
import pytest
import torch
from sklearn import decomposition

from redi.data.cache import fits
from redi.data.cache.cache import Cache
from redi.data.cache.fits import fit_reducer, sample_positions
from redi.data.cache.prepare import prepare
from redi.data.datasets.digits import Digits
from redi.data.loader import batches
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers import Reducer
from redi.models.reducers.pca import PCA
from redi.models.reducers.random_projection import GaussianRandomProjection


class Unlabelled(Digits):
    """The digits without labels."""

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
    """Return inode and modification time of every file; rewriting a file changes them."""
    return {
        str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".verified"
    }


def folders(cache_dir, kind):
    return sorted(path.name for path in (cache_dir / kind).iterdir())


def test_preparing_fits_the_codec_and_encodes_every_image(tmp_path, images):
    codec = tiny_codec()
    prepared = prepare(codec=codec, dataset=images, cache_dir=tmp_path)
    assert codec.fitted
    assert isinstance(prepared, Cache)
    assert len(prepared) == 40
    assert prepared.cache_fingerprint == codec.cache_fingerprint()


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


def test_features_of_several_alignment_encoders_are_cached_and_reused(tmp_path, images):
    def codec(**widths) -> JointCodec:
        settings = {"depth": 1, "image_size": 8, "num_steps": 2, "batch_size": 16}
        parts = {name: DomainEncoder(width=width, **settings) for name, width in widths.items()}
        return JointCodec(autoencoder=Pixels(channels=1), alignment=parts)

    first, second = codec(narrow=6, wide=10), codec(narrow=6, wide=10)
    cache = prepare(codec=first, dataset=images, cache_dir=tmp_path, batch_size=40)
    expected, batch = first.precompute(images.batch(range(40))["images"]), cache.batch(range(40))
    assert all(torch.equal(batch[name], expected[name]) for name in ("alignment_narrow", "alignment_wide"))
    before = files(tmp_path)
    prepare(codec=second, dataset=images, cache_dir=tmp_path).check(first)
    assert files(tmp_path) == before
    assert first.learned_state().keys() == second.learned_state().keys()
    with pytest.raises(ValueError, match="JointCodec.alignment: two of alignment_a, alignment_b are the same encoder"):
        prepare(codec=codec(a=6, b=6), dataset=images, cache_dir=tmp_path)


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
    """A PCA fit contains every rank, so only the encoded images differ."""
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
    whole = [path for kind in ("reducers", "encoded") for path in (tmp_path / kind).glob("[!.]*")]
    assert len(whole) == (0 if fails_at == "fit" else 1)
    dataset.count = 1000
    assert len(prepare(codec=tiny_codec(), dataset=dataset, cache_dir=tmp_path, batch_size=8)) == 40


def test_a_sweep_over_ranks_up_to_the_stored_one_encodes_once(tmp_path, images):
    wide = prepare(codec=tiny_codec(PCA(rank=4, store_rank=4)), dataset=images, cache_dir=tmp_path)
    before = files(tmp_path)
    for rank, scale in ((1, "unit_rms"), (2, "raw"), (3, "whiten")):
        codec = tiny_codec(PCA(rank=rank, scale=scale, store_rank=4))
        cache = prepare(codec=codec, dataset=images, cache_dir=tmp_path)
        assert cache.folder == wide.folder
        assert codec.join(cache.batch([0])).shape[1] == 1 + rank
    assert files(tmp_path) == before


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("mirror", [False, True])
def test_what_is_prepared_says_whether_it_is_mirrored(tmp_path, images, cache, mirror):
    assert (
        prepare(codec=tiny_codec(), dataset=images, cache_dir=tmp_path, cache=cache, mirror=mirror).mirrored == mirror
    )
    assert not images.mirrored


def test_mirrored_images_have_a_cache_of_their_own_from_the_same_fits(tmp_path, images):
    for mirror in (False, True):
        prepare(codec=tiny_codec(), dataset=images, cache_dir=tmp_path, mirror=mirror)
    assert [len(folders(tmp_path, kind)) for kind in ("encoders", "reducers", "encoded")] == [1, 1, 2]


def test_training_batches_with_mirrors_are_the_same_online_and_from_the_cache(tmp_path, images):
    codec = tiny_codec()
    cached, online = (
        prepare(codec=codec, dataset=images, cache_dir=tmp_path, mirror=True, cache=cache) for cache in (True, False)
    )
    pairs = [batches(source, batch_size=16, seed=0, start=0, stop=5) for source in (cached, online)]
    for stored, batch in zip(*pairs, strict=True):
        assert torch.equal(stored["labels"], batch["labels"])
        x = codec.encode(batch["images"])
        # Batches other than those encoded: the order of summation may differ, by one step of float16.
        torch.testing.assert_close(codec.join(stored), x, rtol=2**-10, atol=1e-3)


@pytest.mark.parametrize("name", ["num_fit_images", "batch_size", "rows_per_shard"])
def test_counts_below_one_are_refused(tmp_path, images, name):
    with pytest.raises(ValueError, match=f"prepare.{name} = 0 must be an integer of at least 1"):
        prepare(codec=tiny_codec(), dataset=images, cache_dir=tmp_path, **{name: 0})


class Watched(Digits):
    """Record which images are read; raise KeyboardInterrupt after `left` images."""

    def __init__(self):
        super().__init__()
        self.read, self.left = [], 1000

    def load(self, index):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.read.append(int(index))
        return super().load(index)


@pytest.fixture
def encoder(images):
    encoder = tiny_codec().representations["domain"].encoder
    encoder.fit(images)
    return encoder


def fit(folder, encoder, dataset, reducer=None, **options):
    reducer = reducer or PCA(rank=3)
    settings = {"num_images": 25, "seed": 0, "batch_size": 4, "device": torch.device("cpu")} | options
    fit_reducer(folder, reducer, encoder, dataset, **settings)
    return reducer


def test_the_sample_for_the_fit_is_exact_and_without_repetition(tmp_path, images, encoder):
    watched = Watched().without(range(40, 1438))
    fit(tmp_path, encoder, watched)
    assert len(watched.read) == len(set(watched.read)) == 25
    assert watched.indices[sample_positions(40, 25, 0)].tolist() == sorted(watched.read)


def test_the_fit_in_blocks_is_scikit_learns_fit_to_all_vectors(tmp_path, images, encoder, monkeypatch):
    monkeypatch.setattr(fits, "BLOCK", 7)
    reducer = fit(tmp_path, encoder, images)
    features = encoder(images.batch(sample_positions(40, 25, 0))["images"])
    rows = features.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    reference = decomposition.PCA(n_components=3, svd_solver="full").fit(rows)
    np.testing.assert_allclose(reducer.mean.double().numpy(), reference.mean_, rtol=1e-5, atol=1e-6)
    found = reducer.components[:3].double().numpy()
    # The signs are conventions of either.
    np.testing.assert_allclose(abs((found * reference.components_).sum(axis=1)), 1, rtol=1e-5)


def test_an_interrupted_fit_goes_on_with_the_missing_blocks(tmp_path, encoder, images, monkeypatch):
    monkeypatch.setattr(fits, "BLOCK", 8)
    watched = Watched().without(range(40, 1438))
    watched.left = 20
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "a", encoder, watched)
    watched.left, watched.read = 1000, []
    interrupted = fit(tmp_path / "a", encoder, watched)
    assert len(watched.read) == 25 - 16
    unbroken = fit(tmp_path / "b", encoder, images)
    assert torch.equal(interrupted.components, unbroken.components)


def test_a_damaged_block_is_added_up_again(tmp_path, encoder, images, monkeypatch):
    monkeypatch.setattr(fits, "BLOCK", 8)
    watched = Watched().without(range(40, 1438))
    watched.left = 20
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "a", encoder, watched)
    (path,) = (tmp_path / "a").rglob("block-00001.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    watched.left = 1000
    assert torch.equal(fit(tmp_path / "a", encoder, watched).mean, fit(tmp_path / "b", encoder, images).mean)


def test_a_fit_is_one_that_a_reducers_path_can_name(tmp_path, encoder, images):
    reducer = fit(tmp_path, encoder, images)
    (path,) = tmp_path.iterdir()
    named = PCA(rank=2, path=str(path))
    assert torch.equal(named.components, reducer.components)
    named.check_encoder(encoder.provenance())


def test_a_reducer_fitted_on_another_encoder_is_refused(tmp_path, encoder, images):
    fit(tmp_path / "fits", encoder, images)
    (path,) = (tmp_path / "fits").iterdir()
    with pytest.raises(ValueError, match="was fitted on features of another encoder .seed: 0 -> 1"):
        prepare(codec=tiny_codec(PCA(rank=3, path=str(path)), seed=1), dataset=images, cache_dir=tmp_path)


class Averages(Reducer):
    """A reducer with its own fit: R group means minus their average over the training features."""

    def __init__(self, *, rank=2):
        super().__init__(rank=rank)
        self.register_buffer("mean", torch.full((rank,), torch.nan))
        self.batches = 0

    @property
    def fitted(self):
        return bool(self.mean.isfinite().all())

    def fit(self, batches):
        parts = [self._groups(batch) for batch in batches]
        self.batches = len(parts)
        self.mean = torch.cat(parts).mean(dim=(0, 2, 3))

    def _groups(self, features):
        return torch.stack([part.mean(dim=1) for part in features.chunk(self.rank, dim=1)], dim=1)

    def project(self, features):
        return self._groups(features) - self.mean[:, None, None]

    def fit_settings(self):
        return {"reducer": "Averages", "rank": self.rank}

    def provenance(self):
        return self.fit_settings()


def test_a_reducer_with_a_fit_of_its_own_is_given_the_whole_sample_by_one_rank(tmp_path, encoder, images):
    reducer = fit(tmp_path, encoder, images, Averages(), rank=1, world_size=3)
    assert reducer.batches == 7  # 25 images in batches of 4
    assert torch.equal(fit(tmp_path, encoder, images, Averages()).mean, reducer.mean)


class Percentiles(Averages):
    """A reducer whose fit sets buffers that are None before."""

    def __init__(self, *, rank=2):
        super().__init__(rank=rank)
        self.register_buffer("edges", None)
        self.register_buffer("counts", None)

    def fit(self, batches):
        rows = torch.cat([batch.flatten(2).movedim(1, 0).flatten(1) for batch in batches], dim=1)  # (E, vectors)
        self.edges = rows.double().quantile(torch.tensor([0.1, 0.9]).double(), dim=1)  # (2, E)
        self.counts = (rows < self.edges[1, :, None]).sum(dim=1)
        super().fit([rows.T[:, :, None, None]])

    def project(self, features):
        return super().project(features.clamp(*self.edges.float()[..., None, None]) / self.counts[:, None, None])


def test_buffers_that_are_none_until_the_fit_are_restored_whatever_their_shape_and_type(tmp_path, encoder, images):
    reducer = fit(tmp_path, encoder, images, Percentiles())
    other = Percentiles()
    other.load_state_dict(reducer.state_dict())
    assert (other.edges.dtype, other.edges.shape, other.counts.dtype) == (torch.float64, (2, 8), torch.int64)
    features = encoder(images.batch(range(3))["images"])
    assert torch.equal(other(features), reducer(features))


class RegisteredLate(Averages):
    def fit(self, batches):
        super().fit(batches)
        self.register_buffer("scale", torch.tensor(2.0))


class Attribute(Averages):
    scale = 1.0

    def fit(self, batches):
        super().fit(batches)
        self.scale = 2.0

    def project(self, features):
        return self.scale * super().project(features)


class AttributeOfMoments(PCA):
    def rows(self, covariance):
        self.trace = covariance.trace().float()
        return super().rows(covariance)

    def project(self, features):
        return super().project(features) * self.trace


@pytest.mark.parametrize(
    ("reducer_class", "reason"),
    [
        (RegisteredLate, r"cannot be restored from its state: ADVICE \(.*Unexpected key.*scale"),
        (Attribute, "restored from its state computes other values than the fitted one: ADVICE$"),
        (AttributeOfMoments, r"cannot be restored from its state: ADVICE \(.*no attribute 'trace'"),
    ],
)
def test_a_reducer_whose_state_is_not_all_that_it_learned_is_refused_at_the_fit(
    reducer_class, reason, tmp_path, encoder, images
):
    advice = "every tensor that fit sets must be a buffer or parameter that __init__ registers"
    with pytest.raises(ValueError, match=f"{reducer_class.__name__} {reason.replace('ADVICE', advice)}"):
        fit(tmp_path, encoder, images, reducer_class(rank=2))
    assert not list(tmp_path.glob("[!.]*"))  # nothing is stored that would be taken for a fit


class Forgetful(DomainEncoder):
    def fit(self, dataset):
        super().fit(dataset)
        self.offset = 1.0

    def forward(self, images):
        return super().forward(images) + getattr(self, "offset", 0.0)


def test_an_encoder_whose_state_is_not_all_that_it_learned_is_refused_at_the_fit(tmp_path, images):
    codec = tiny_codec()
    codec.representations["domain"].encoder = Forgetful(width=8, depth=1, image_size=8, num_steps=2, batch_size=16)
    with pytest.raises(ValueError, match="Forgetful restored from its state computes other values"):
        prepare(codec=codec, dataset=images, cache_dir=tmp_path)


def test_features_that_are_not_finite_are_refused_at_the_fit_with_the_images_names(tmp_path, encoder, images):
    first = images.names[sample_positions(40, 25, 0)[5]]
    calls, whole = [], encoder.forward

    def forward(batch):
        features = whole(batch)
        calls.append(len(batch))
        if len(calls) == 2:
            features[1, 0, 0, 0] = torch.inf
        return features

    encoder.forward = forward
    with pytest.raises(ValueError, match=f"values in the features of DomainEncoder for 1 of the 4 .*: {first}"):
        fit(tmp_path, encoder, images)
