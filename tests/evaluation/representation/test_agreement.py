"""The generated representation: closed forms for its agreement, and complete entries."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from redi.core.processes.flow_matching import FlowMatching
from redi.core.resize import resized
from redi.data.datasets.digits import Digits
from redi.evaluation.representation.agreement import representation_metrics
from redi.evaluation.representation.encoder_space import EncoderSpace, agreement, derangement, generated_features
from redi.evaluation.representation.picture import LEGEND, representation_picture
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec, Representation
from redi.models.encoders import Encoder
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers import Reducer
from redi.models.reducers.identity import Identity
from redi.models.reducers.pca import PCA
from redi.runs.load import Run
from redi.sampling.generate import Generated
from redi.sampling.pictures import ColourBasis


class Sides(Encoder):
    """Two features per 2x2 patch: the contrast of its columns and that of its rows, far from zero."""

    dim = 2

    def __init__(self):
        super().__init__()
        self.register_buffer("kernels", torch.tensor([[[1.0, -1], [1, -1]], [[1.0, 1], [-1, -1]]])[:, None])

    def forward(self, images):
        return functional.conv2d(images[:, :1].float() / 255, self.kernels, stride=2) + 5

    def provenance(self):
        return {"encoder": "Sides"}


class OneWay(Reducer):
    """The first R features, without an inverse."""

    fitted = True

    def fit(self, batches):
        pass

    def project(self, features):
        return features[:, : self.rank]

    def fit_settings(self):
        return {}

    def provenance(self):
        return {}


class Halved(OneWay):
    """Maps features f to (f - 3) / 2, without a `mean` attribute."""

    def project(self, features):
        return (features - 3) / 2

    def inverse(self, reduced):
        return 2 * reduced + 3


class InMemory:
    """Samples in memory, with the interface of `redi.evaluation.samples.stored.Samples`."""

    def __init__(self, images, x, labels, num_sets=1):
        self.drawn, self.labels = Generated(images, x, labels, {}), labels
        each = len(labels) // num_sets
        self.sets = [{"seed": i, "start": i * each, "stop": (i + 1) * each} for i in range(num_sets)]

    def take(self, positions):
        one = self.drawn
        return Generated(*(None if t is None else t[positions] for t in (one.images, one.x, one.labels)), {})


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def held_out():
    return Digits(split="held_out")


def run_of(codec, dataset) -> Run:
    colours = ColourBasis.fit(codec.channels, codec.encode_sample(dataset, 50))
    return Run(None, codec, FlowMatching(), None, {}, colours, step=1, num_classes=10, image_size=8)


@pytest.fixture(scope="module")
def trained(digits):
    """An encoder on a 4x4 grid with all of its 8 features, and pixels on an 8x8 grid."""
    encoder = DomainEncoder(width=8, depth=1, image_size=16, num_steps=30, batch_size=32)
    encoder.fit(digits.without(range(400, len(digits))))
    return run_of(codec_of(PCA(rank=8), digits, encoder), digits)


def codec_of(reducer, digits, encoder=None) -> JointCodec:
    encoder = encoder or Sides()
    reducer.fit([encoder(digits.batch(range(200))["images"])])
    return JointCodec(
        autoencoder=Pixels(channels=1), representations=[Representation(encoder=encoder, reducer=reducer, name="z")]
    )


def own(codec, digits, count):
    """Images with the joint state of a perfect generator."""
    batch = digits.batch(range(count))
    return batch["images"], codec.encode(batch["images"]), batch["labels"]


def z_of(codec, x):
    return codec.channels.split(x)["z"]


def test_generated_features_at_full_rank_are_the_encoder_s(trained, digits):
    images, x, _ = own(trained.codec, digits, 6)
    found = generated_features(trained.codec, x)
    features = trained.codec.representations["z"].encoder(images)
    assert found["z"].shape == (6, 8, 4, 4) == features.shape
    torch.testing.assert_close(found["z"], features, rtol=0, atol=4e-3 * float(features.abs().max()))  # float16


def test_agreement_with_oneself_is_one_at_full_rank_and_always_the_ceiling(trained, digits):
    images, x, labels = own(trained.codec, digits, 40)
    space = EncoderSpace(trained.codec, "z", images[:1])
    found = agreement(space, images, z_of(trained.codec, x), labels)
    for cosines in (found.centred, found.raw):
        assert torch.equal(cosines["generated"], cosines["ceiling"])
        torch.testing.assert_close(cosines["generated"], torch.ones(40, 4, 4), rtol=0, atol=1e-3)
        assert cosines["floor"].mean() < cosines["same_class"].mean() < 0.99


def test_a_smaller_rank_lowers_the_ceiling_to_what_it_keeps(trained, digits):
    encoder = trained.codec.representations["z"].encoder
    codec = codec_of(PCA(rank=2), digits, encoder)
    images, x, labels = own(codec, digits, 40)
    space = EncoderSpace(codec, "z", images[:1])
    found = agreement(space, images, z_of(codec, x), labels)
    reducer, features = codec.representations["z"].reducer, encoder(images)
    centred = features - reducer.mean[:, None, None]
    rows = reducer.components[:2].double()
    kept = torch.einsum("re,nehw->nrhw", rows, centred.double()).norm(dim=1)
    # The cosine between a vector and its projection is what of its length the projection keeps.
    torch.testing.assert_close(
        found.centred["ceiling"].double(), kept / centred.double().norm(dim=1), atol=1e-3, rtol=0
    )
    assert torch.equal(found.centred["generated"], found.centred["ceiling"])


@pytest.mark.parametrize("degrees", [0, 30, 90, 180])
def test_features_turned_by_an_angle_agree_by_its_cosine(digits, degrees):
    codec = codec_of(Identity(rank=2, scale="raw"), digits)
    images, x, labels = own(codec, digits, 20)
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    space = EncoderSpace(codec, "z", images[:1])
    found = agreement(space, images, torch.einsum("ab,nbhw->nahw", turn, z_of(codec, x)), labels)
    assert space.grid == (4, 4)
    torch.testing.assert_close(found.centred["generated"], torch.full((20, 4, 4), math.cos(angle)), rtol=0, atol=3e-3)
    assert found.raw["generated"].min() > 0.5  # the mean of 5 hides what was turned


def test_the_floor_is_the_cosine_with_the_next_image_of_a_ring(trained, digits):
    images, x, labels = own(trained.codec, digits, 30)
    z, seed = z_of(trained.codec, x), 3
    space = EncoderSpace(trained.codec, "z", images[:1])
    found = agreement(space, images, z, labels, seed=seed, batch_size=7)
    features = trained.codec.representations["z"].encoder(images).double()
    mean = trained.codec.representations["z"].reducer.mean.double()
    for kind, groups in (("floor", torch.zeros_like(labels)), ("same_class", labels)):
        partners = derangement(groups, seed)
        for i in (0, 11, 29):
            for row, column in ((0, 0), (2, 3)):
                one, other = features[i, :, row, column] - mean, features[partners[i], :, row, column] - mean
                expected = one @ other / (one.norm() * other.norm())
                assert float(found.centred[kind][i, row, column]) == pytest.approx(float(expected), abs=3e-3)


def test_the_floor_is_the_same_whichever_side_is_shuffled(trained, digits):
    images, x, labels = own(trained.codec, digits, 50)
    space = EncoderSpace(trained.codec, "z", images[:1])
    forward = agreement(space, images, z_of(trained.codec, x), labels).centred["floor"].mean()
    partners = derangement(torch.zeros_like(labels), 0)
    features, mean = trained.codec.representations["z"].encoder(images), space.mean[:, None, None]
    backward = functional.cosine_similarity(features[partners] - mean, features - mean, dim=1).mean()
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-4)


def test_batches_do_not_matter(trained, digits):
    images, x, labels = own(trained.codec, digits, 20)
    space = EncoderSpace(trained.codec, "z", images[:1])
    one, many = (agreement(space, images, z_of(trained.codec, x), labels, batch_size=size) for size in (20, 3))
    for kind, cosines in one.centred.items():
        torch.testing.assert_close(many.centred[kind], cosines, rtol=0, atol=1e-5, equal_nan=True)


def test_nothing_stays_in_its_place_but_what_is_alone():
    groups = torch.tensor([0, 0, 0, 1, 2, 2, 0, 2])
    partners = derangement(groups, seed=0)
    assert torch.equal(partners.sort().values, torch.arange(8))
    assert torch.equal(groups[partners], groups)
    assert (partners == torch.arange(8)).nonzero().flatten().tolist() == [3]
    assert torch.equal(partners, derangement(groups, seed=0))


def test_the_ring_goes_through_all_of_a_group():
    partners, at, seen = derangement(torch.zeros(50, dtype=torch.int64), seed=1), 0, set()
    while at not in seen:
        seen.add(at)
        at = int(partners[at])
    assert len(seen) == 50


def test_an_image_alone_in_its_class_has_no_other_of_it(trained, digits):
    images, x, _ = own(trained.codec, digits, 5)
    space = EncoderSpace(trained.codec, "z", images[:1])
    found = agreement(space, images, z_of(trained.codec, x), torch.tensor([1, 1, 4, -1, -1]))
    assert found.centred["same_class"].isnan().all(dim=(1, 2)).tolist() == [False, False, True, True, True]
    assert not found.centred["floor"].isnan().any()


def test_without_an_inverse_features_are_the_reduced_ones(digits):
    codec = codec_of(OneWay(rank=2), digits)
    images, x, labels = own(codec, digits, 10)
    space = EncoderSpace(codec, "z", images[:1])
    assert not space.inverts
    assert generated_features(codec, x)["z"].shape == (10, 2, 4, 4)
    found = agreement(space, images, z_of(codec, x), labels)
    torch.testing.assert_close(found.centred["ceiling"], torch.ones(10, 4, 4), rtol=0, atol=1e-4)
    entry = representation_metrics(run_of(codec, digits), InMemory(images, x, labels), digits)[0]
    assert entry["space"] == "reduced" and "no inverse" in entry["note"]


def test_a_reducer_that_tells_no_mean_is_centred_on_what_it_makes_of_zeros(digits):
    codec = codec_of(Halved(rank=2), digits)
    space = EncoderSpace(codec, "z", digits.batch([0])["images"])
    torch.testing.assert_close(space.mean, torch.full((2,), 3.0))


def test_what_no_resized_map_holds_is_told_apart(trained, digits):
    images, x, _ = own(trained.codec, digits, 4)
    space, z = EncoderSpace(trained.codec, "z", images[:1]), z_of(trained.codec, x)
    torch.testing.assert_close(space.off_grid(z), torch.zeros(4), rtol=0, atol=1e-6)
    noise = torch.randn(200, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(space.off_grid(noise).mean()) == pytest.approx(1 - (4 / 8) ** 2, abs=0.01)  # 16 of 64 dimensions


def test_an_entry_holds_the_means_of_the_cosines(trained, digits, held_out):
    images, x, labels = own(trained.codec, digits, 60)
    x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    entry = representation_metrics(trained, InMemory(images, x, labels), digits, held_out)[0]
    found = agreement(EncoderSpace(trained.codec, "z", images[:1]), images, z_of(trained.codec, x), labels)
    means = {kind: float(cosines.nanmean()) for kind, cosines in found.centred.items()}
    assert entry["metric"] == "representation_agreement_z"
    assert entry["value"] == pytest.approx(means["generated"], abs=1e-6)
    assert entry["floor"] < entry["same_class"] < entry["value"] < entry["ceiling"]
    for kind in ("floor", "ceiling", "same_class"):
        assert entry[kind] == pytest.approx(means[kind], abs=1e-6)
    fraction = (means["generated"] - means["floor"]) / (means["ceiling"] - means["floor"])
    assert entry["fraction"] == pytest.approx(fraction, abs=1e-5)
    within = (means["generated"] - means["same_class"]) / (means["ceiling"] - means["same_class"])
    assert entry["fraction_within_class"] == pytest.approx(within, abs=1e-5)
    assert 0.1 < entry["off_grid"] < 0.75  # all of the noise that was added would be 0.75
    np.testing.assert_allclose(entry["per_token"], found.centred["generated"].mean(dim=0), atol=1e-4)
    assert (entry["num_samples"], entry["spread"], entry["per_seed"]) == (60, None, [entry["value"]])


def test_seeds_are_measured_one_by_one(trained, digits, held_out):
    images, x, labels = own(trained.codec, digits, 120)
    x[60:] += torch.randn(x[60:].shape, generator=torch.Generator().manual_seed(0))
    both = representation_metrics(trained, InMemory(images, x, labels, num_sets=2), digits, held_out)
    alone = [
        representation_metrics(trained, InMemory(images[part], x[part], labels[part]), digits, held_out)
        for part in (slice(60), slice(60, 120))
    ]
    for together, first, second in zip(both, *alone, strict=True):
        assert together["metric"] == first["metric"] == second["metric"]
        assert together["per_seed"] == pytest.approx([first["value"], second["value"]], abs=1e-5)
        assert together["value"] == pytest.approx(np.mean(together["per_seed"]))
        assert together["spread"] == pytest.approx(np.std(together["per_seed"], ddof=1))
        assert together["num_samples"] == 60


def test_probes_of_a_perfect_generator_reach_the_ceiling(trained, digits, held_out):
    images, x, labels = own(trained.codec, held_out, len(held_out))
    entries = representation_metrics(trained, InMemory(images, x, labels), digits, held_out)
    assert [entry["metric"] for entry in entries[1:]] == [
        f"{probe}_{question}_z"
        for probe in ("linear_probe", "knn")
        for question in ("generated", "generated_images", "from_generated")
    ]
    for entry in entries[1:]:
        assert 0.3 < entry["ceiling"] < 1  # neither chance nor full marks, which would compare nothing
        assert (entry["num_classes"], entry["num_held_out"]) == (10, len(held_out))
        if "from_generated" not in entry["metric"]:
            assert entry["value"] == pytest.approx(entry["ceiling"], abs=1e-9)
            assert entry["fraction"] == pytest.approx(1)
    json.dumps(entries, allow_nan=False)


def test_probes_fall_to_chance_where_the_labels_are_others_and_the_features_no_more(trained, digits, held_out):
    images, x, labels = own(trained.codec, held_out, 300)
    shuffled = labels[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    entries = {e["metric"]: e for e in representation_metrics(trained, InMemory(images, x, shuffled), digits, held_out)}
    for name in ("linear_probe_generated_z", "knn_generated_z", "linear_probe_generated_images_z"):
        assert entries[name]["value"] == pytest.approx(0.1, abs=0.06)  # 3 standard errors of 300 answers
    assert entries["representation_agreement_z"]["value"] > 0.99  # image and features still fit


def test_without_held_out_images_other_training_images_are_asked_about(trained, digits):
    images, x, labels = own(trained.codec, digits, 40)
    entry = representation_metrics(trained, InMemory(images, x, labels), digits, None)[1]
    assert (entry["num_train"], entry["num_held_out"]) == (40, 40)
    assert "training images that the probe has not seen" in entry["note"]


def test_only_the_classes_of_the_samples_are_told_apart(trained, digits, held_out):
    few = np.flatnonzero(np.isin(digits.labels, (3, 7)))[:40]
    batch = digits.batch(few.tolist())
    samples = InMemory(batch["images"], trained.codec.encode(batch["images"]), batch["labels"])
    entry = representation_metrics(trained, samples, digits, held_out)[1]
    assert entry["num_classes"] == 2
    assert 0.4 < entry["floor"] < 0.7


@pytest.mark.parametrize("label", [4, 10])  # one class; the null label
def test_without_two_classes_there_are_no_probes(trained, digits, held_out, label):
    images, x, _ = own(trained.codec, digits, 10)
    entries = representation_metrics(trained, InMemory(images, x, torch.full((10,), label)), digits, held_out)
    assert [entry["metric"] for entry in entries] == ["representation_agreement_z"]
    assert (entries[0]["same_class"] is None) == (label == 10)
    assert (entries[0]["fraction_within_class"] is None) == (label == 10)


def test_no_more_images_are_looked_at_than_asked_for(trained, digits, held_out):
    images, x, labels = own(trained.codec, digits, 60)
    entries = representation_metrics(trained, InMemory(images, x, labels), digits, held_out, max_images=30)
    assert {entry["num_samples"] for entry in entries} == {30}
    assert {entry["num_train"] for entry in entries[1:]} == {30}


def test_a_model_of_images_alone_and_samples_without_x_have_no_such_metrics(trained, digits):
    images, x, labels = own(trained.codec, digits, 4)
    plain = JointCodec(autoencoder=Pixels(channels=1))
    assert representation_metrics(run_of(plain, digits), InMemory(images, x[:, :1], labels), digits) == []
    assert representation_metrics(trained, InMemory(images, None, labels), digits) == []


def test_samples_that_cannot_be_measured_are_refused(trained, digits):
    images, x, labels = own(trained.codec, digits, 4)
    with pytest.raises(ValueError, match="Raise sample.num_images"):
        representation_metrics(trained, InMemory(images[:1], x[:1], labels[:1]), digits)
    x[2, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        representation_metrics(trained, InMemory(images, x, labels), digits)


def test_the_picture_shows_images_features_and_where_they_agree(trained, digits):
    images, x, labels = own(trained.codec, digits, 40)
    zero, one = (int((labels == label).nonzero()[0]) for label in (0, 1))  # those in the first two columns
    x[one, 1:] = -x[one, 1:]  # features that point the other way
    picture = np.asarray(representation_picture(trained, InMemory(images, x, labels), rows=1))
    top, z = 22 + 12, z_of(trained.codec, x)
    for i, shown, grey in ((0, zero, 255), (1, one, 0)):
        left = 4 + i * 68
        rows = [picture[top + 65 * row :][:64, left : left + 64] for row in range(4)]
        assert np.array_equal(rows[0][::8, ::8].transpose(2, 0, 1), images[shown].numpy())
        assert np.array_equal(rows[2][::8, ::8].transpose(2, 0, 1), trained.colours("z", z)[shown].numpy())
        assert np.array_equal(rows[1], rows[2]) == (i == 0)
        assert abs(rows[3].astype(int) - grey).max() <= 1
    assert "cosine 1" in LEGEND


def test_there_is_no_picture_of_what_is_not_there(trained, digits):
    images, x, labels = own(trained.codec, digits, 4)
    with pytest.raises(ValueError, match="no representation to draw"):
        representation_picture(run_of(JointCodec(), digits), InMemory(images, x, labels))
    with pytest.raises(ValueError, match="sample.keep"):
        representation_picture(trained, InMemory(images, None, labels))


def test_a_coarser_latent_grid_is_undone_too(digits):
    class Fine(Sides):
        def forward(self, images):
            return resized(super().forward(images), (16, 16))

    codec = codec_of(Identity(rank=2), digits, Fine())
    images, x, labels = own(codec, digits, 10)
    space = EncoderSpace(codec, "z", images[:1])
    found = agreement(space, images, z_of(codec, x), labels)
    assert found.centred["generated"].shape == (10, 16, 16)
    assert found.centred["ceiling"].mean() > 0.9  # details are lost, the rest comes back
    assert torch.equal(found.centred["generated"], found.centred["ceiling"])
    assert not isinstance(space.reducer.components, nn.Parameter)


# Vectors


class SidesToken(Sides):
    has_class_token = True

    def class_token(self, images):
        return self(images).flatten(1)[:, :2]  # of the first patch


@pytest.fixture(scope="module")
def with_token(digits):
    encoder = SidesToken()
    parts = [Representation(encoder, Identity(rank=2), name="z", vector=vector) for vector in ("pooled", "class")]
    parts[1].name = "token"
    for part in parts:
        part.reducer.fit([part.features(digits.batch(range(200))["images"])])
    return run_of(JointCodec(Pixels(channels=1), parts).for_image_size(8), digits)


def test_a_generated_vector_at_full_rank_is_the_encoder_s(with_token, digits):
    images, x, labels = own(with_token.codec, digits, 20)
    found = generated_features(with_token.codec, x)
    encoder = with_token.codec.representations["z"].encoder
    for name, expected in (("z", encoder.pooled(images)), ("token", encoder.class_token(images))):
        # float16 in the cache, relative to the largest feature
        torch.testing.assert_close(found[name][:, :, 0, 0], expected, rtol=0, atol=2e-3)
    space = EncoderSpace(with_token.codec, "token", images[:1])
    assert space.grid == (1, 1) and not space.off_grid(z_of(with_token.codec, x)).any()


def test_a_perfect_vector_agrees_with_its_image_and_is_probed(with_token, digits, held_out):
    images, x, labels = own(with_token.codec, digits, 60)
    entries = {
        e["metric"]: e for e in representation_metrics(with_token, InMemory(images, x, labels), digits, held_out)
    }
    entry = entries["representation_agreement_z"]
    assert entry["value"] == pytest.approx(1, abs=1e-3) and entry["ceiling"] == pytest.approx(entry["value"])
    assert np.shape(entry["per_token"]) == (1, 1) and entry["off_grid"] == 0
    assert {"linear_probe_generated_token", "knn_from_generated_z"} < set(entries)


def test_the_picture_shows_the_training_images_nearest_to_a_generated_vector(with_token, digits):
    images, x, labels = own(with_token.codec, digits, 30)
    order = labels.argsort(stable=True)
    drawn = InMemory(images[order].roll(1, 0), x[order], labels[order])  # other images than those of the vectors
    picture = np.asarray(representation_picture(with_token, drawn, digits, rows=1, num_candidates=len(digits)))
    vectors = with_token.codec.representations["z"].encoder.pooled(digits.batch(range(len(digits)))["images"]).double()
    centred = functional.normalize(vectors - with_token.codec.representations["z"].reducer.mean.double(), dim=1)
    for column in range(10):
        first = int((labels[order] == column).nonzero()[0])
        nearest = (centred @ centred[order[first]]).topk(3).indices.tolist()
        left, top = 4 + column * 68, 22 + 12
        rows = [picture[top + 65 * row :][:64, left : left + 64][::8, ::8, 0] for row in range(4)]
        assert np.array_equal(rows[0], drawn.drawn.images[first, 0].numpy())
        assert np.array_equal(rows[1], digits.batch([nearest[0]])["images"][0, 0].numpy())
    without = representation_picture(with_token, drawn, rows=1)
    assert without.size[1] == 22 + 65 + 4 + 12 and picture.shape[0] == 22 + 7 * 65 + 4 + 12
