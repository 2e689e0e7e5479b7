import json
from copy import deepcopy

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from redi.core.registry import registries
from redi.data.datasets.digits import Digits
from redi.models.encoders import Encoder
from redi.models.encoders.domain import DomainEncoder, contrastive_loss

ENCODERS = registries["encoders"]
# 100 steps take less than a second and reach what 300 steps of the default width do on 8x8 digits, to a percent.
SMALL = {"width": 32, "depth": 1, "image_size": 16, "num_steps": 100}
QUICK = SMALL | {"num_steps": 3}


def everything(dataset: Digits) -> tuple[Tensor, Tensor]:
    batch = dataset.batch(range(len(dataset)))
    return batch["images"], batch["labels"]


@pytest.fixture(scope="module")
def train_set() -> Digits:
    return Digits(split="train")


@pytest.fixture(scope="module")
def held_out() -> tuple[Tensor, Tensor]:
    return everything(Digits(split="held_out"))


@pytest.fixture(scope="module")
def classifier(train_set) -> DomainEncoder:
    encoder = DomainEncoder(**SMALL)
    encoder.fit(train_set)
    return encoder


def quick(train_set, **overrides) -> DomainEncoder:
    encoder = DomainEncoder(**QUICK | overrides)
    encoder.fit(train_set)
    return encoder


def noise_images(n: int, side: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


# Contract: an encoder that learns is trained for a moment, a pretrained one is tiny and its weights are random.


@pytest.fixture(params=list(ENCODERS), scope="module")
def encoder(request, train_set, tiny_encoder) -> Encoder:
    encoder = quick(train_set) if request.param == "DomainEncoder" else tiny_encoder(request.param)
    encoder.load()
    return encoder


def test_features_are_float32_of_the_stated_width(encoder):
    features = encoder(noise_images(2, 32))
    assert features.ndim == 4
    assert features.shape[:2] == (2, encoder.dim)
    assert features.dtype == torch.float32
    assert features.isfinite().all()


def test_metric_features_are_a_float32_vector_an_image(encoder):
    pooled = encoder.metric_features(noise_images(2, 32))["pooled"]
    assert pooled.shape == (2, 1280 if type(encoder).__name__ == "EfficientNetLite" else encoder.dim)
    assert pooled.dtype == torch.float32 and pooled.isfinite().all() and not pooled.requires_grad
    if pooled.shape[1] == encoder.dim:  # EfficientNetLite measures just before its classifier
        assert torch.equal(pooled, encoder.pooled(noise_images(2, 32)))
    # A constant would pass the rest.
    assert not torch.equal(pooled[:1], encoder.metric_features(255 - noise_images(1, 32))["pooled"])


def test_the_names_of_metrics_tell_the_network_and_only_inceptions_are_called_fid(encoder):
    name = encoder.metric_name("frechet_distance")
    expected = {"DomainEncoder": "frechet_distance_domain_network", "Inception": "fid_clean"}
    expected["DINOv2"] = "frechet_distance_dinov2_tiny_registers"
    expected["EfficientNetLite"] = "frechet_distance_efficientnet_lite0"
    assert name == expected.get(type(encoder).__name__, f"frechet_distance_{encoder.name}")


def test_features_are_deterministic_and_do_not_depend_on_the_batch(encoder):
    images = noise_images(2, 32)
    features = encoder(images)
    assert torch.equal(encoder(images), features)
    # Convolutions may take another path for another batch size.
    torch.testing.assert_close(encoder(images[1:2]), features[1:2], rtol=1e-4, atol=1e-5)


def test_encoders_are_frozen(encoder):
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(noise_images(1, 32)).requires_grad


def test_using_an_encoder_does_not_change_its_state(encoder):
    before = deepcopy(encoder.state_dict())
    encoder.train()
    encoder(noise_images(1, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_provenance_and_fit_settings_are_json(encoder):
    for record in [encoder.provenance(), *([encoder.fit_settings()] if encoder.learns_from_data else [])]:
        assert json.loads(json.dumps(record)) == record


def test_name_is_a_short_identifier(encoder):
    assert encoder.name.isidentifier()
    assert encoder.name == encoder.name.lower()


def test_state_dict_round_trip_gives_the_same_features(encoder):
    other = deepcopy(encoder)
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(encoder.state_dict(), strict=True)
    assert torch.equal(other(noise_images(1, 32)), encoder(noise_images(1, 32)))


# DomainEncoder


def test_held_out_digits_are_told_apart(classifier, held_out):
    images, labels = held_out
    assert (classifier.logits(images).argmax(dim=1) == labels).float().mean() > 0.95


def neighbour_accuracy(encoder: DomainEncoder, train_set: Digits, held_out) -> float:
    images, labels = everything(train_set)
    neighbours = KNeighborsClassifier(5).fit(encoder.pooled(images), labels)
    return neighbours.score(encoder.pooled(held_out[0]), held_out[1])


def untrained() -> DomainEncoder:
    encoder = DomainEncoder(**SMALL)
    encoder.trained.fill_(True)
    return encoder


@pytest.mark.parametrize(("objective", "num_steps"), [("labels", 60), ("contrastive", 150)])
def test_neighbours_of_trained_features_are_better_than_of_untrained_ones(objective, num_steps, train_set, held_out):
    trained = quick(train_set, objective=objective, num_steps=num_steps)
    # Measured over several seeds: 0.80-0.85 untrained, 0.88-0.92 contrastive, 0.96-0.98 with labels.
    better = neighbour_accuracy(trained, train_set, held_out) - neighbour_accuracy(untrained(), train_set, held_out)
    assert better > 0.04


def test_the_contrastive_loss_is_nt_xent_written_out():
    torch.manual_seed(0)
    z = torch.randn(6, 5, dtype=torch.float64)  # views of images 0, 1, 2, 0, 1, 2
    losses = []
    for i in range(6):
        similarity = torch.stack([z[i] @ other / z[i].norm() / other.norm() / 0.2 for other in z])
        others = [j for j in range(6) if j != i]
        losses.append(similarity[others].exp().sum().log() - similarity[(i + 3) % 6])
    torch.testing.assert_close(contrastive_loss(z), torch.stack(losses).mean(), rtol=1e-12, atol=0)


def test_features_have_a_quarter_of_image_size_a_side(classifier):
    assert classifier(noise_images(2, 16)).shape == (2, 32, 4, 4)


@pytest.mark.parametrize("side", [8, 15, 16, 40])
def test_images_of_any_size_give_the_same_grid(classifier, side):
    assert classifier(noise_images(1, side)).shape == (1, 32, 4, 4)


def test_images_are_resized_as_pillow_does(classifier):
    import numpy as np
    from PIL import Image

    images = noise_images(2, 40)
    resized = [Image.fromarray(i.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BILINEAR) for i in images]
    expected = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in resized])
    difference = classifier.resized(images).int() - expected.int()
    assert difference.abs().max() <= 1  # Pillow computes with 8-bit fixed-point weights


def test_pooled_is_the_mean_over_the_grid(classifier):
    images = noise_images(2, 16)
    expected = classifier(images).flatten(2).mean(dim=2)
    torch.testing.assert_close(classifier.pooled(images), expected, rtol=1e-5, atol=1e-6)


def test_two_fits_with_one_seed_are_equal(train_set):
    first, second = quick(train_set), quick(train_set)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_a_second_fit_of_the_same_object_starts_afresh(train_set):
    encoder = quick(train_set)
    before = deepcopy(encoder.state_dict())
    encoder.fit(train_set)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_another_seed_gives_another_network(train_set):
    images = noise_images(1, 16)
    assert not torch.allclose(quick(train_set, seed=1)(images), quick(train_set)(images))


@pytest.mark.parametrize("objective", ["labels", "contrastive"])
def test_constructing_fitting_and_loading_leave_the_global_generator_alone(objective, train_set):
    before = torch.get_rng_state()
    encoder = quick(train_set, objective=objective)
    DomainEncoder(**QUICK).load_state_dict(encoder.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_fitting_changes_every_weight(train_set):
    before = untrained().state_dict()
    after = quick(train_set).state_dict()
    assert all(not torch.equal(after[name], tensor) for name, tensor in before.items() if name != "trained")


@pytest.mark.parametrize("objective", ["labels", "contrastive"])
def test_state_loads_into_a_new_object_with_its_head(objective, train_set):
    encoder, other = quick(train_set, objective=objective), DomainEncoder(**QUICK)
    other.load_state_dict(encoder.state_dict(), strict=True)
    images = noise_images(2, 16)
    assert torch.equal(other(images), encoder(images))
    assert other.is_classifier == encoder.is_classifier == (objective == "labels")
    assert torch.equal(other.head(other.pooled(images)), encoder.head(encoder.pooled(images)))
    assert not any(parameter.requires_grad for parameter in other.parameters())


def test_one_class_is_learned_by_contrast(train_set):
    zeros = train_set.without([i for i, label in enumerate(train_set.labels) if label != 0])
    zeros.num_classes = 1
    assert not quick(zeros).is_classifier


def test_labels_of_one_class_are_refused(train_set):
    zeros = train_set.without([i for i, label in enumerate(train_set.labels) if label != 0])
    zeros.num_classes = 1
    with pytest.raises(ValueError, match="objective = 'labels' needs at least two classes"):
        quick(zeros, objective="labels")


def test_logits_of_an_encoder_without_classes_are_refused(train_set):
    with pytest.raises(ValueError, match="trained without labels"):
        quick(train_set, objective="contrastive").logits(noise_images(1, 16))


def test_use_before_the_fit_is_refused():
    encoder = DomainEncoder()
    assert not encoder.fitted
    with pytest.raises(ValueError, match="this DomainEncoder has not been trained"):
        encoder(noise_images(1, 32))


@pytest.mark.parametrize("side", [0, 2, 30, -4])
def test_an_image_size_that_the_stride_does_not_divide_is_refused(side):
    with pytest.raises(ValueError, match=f"DomainEncoder.image_size = {side}: must be a multiple of 4"):
        DomainEncoder(image_size=side)


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="objective = 'mae': must be 'auto', 'labels' or 'contrastive'"):
        DomainEncoder(objective="mae")


def test_provenance_changes_with_one_weight(classifier):
    changed = deepcopy(classifier)
    next(changed.trunk.parameters()).view(-1)[0] += 1e-3
    before, after = classifier.provenance(), changed.provenance()
    assert before["weights_sha256"] != after["weights_sha256"]
    assert {**before, "weights_sha256": None} == {**after, "weights_sha256": None}


def test_fit_settings_hold_every_argument():
    import inspect

    arguments = set(inspect.signature(DomainEncoder).parameters)
    assert set(DomainEncoder().fit_settings()) == arguments | {"encoder"}


def test_max_images_bounds_what_is_read(train_set):
    read = []

    class Counting:
        num_classes = 10

        def __len__(self):
            return len(train_set)

        def __getitem__(self, position):
            read.append(position)
            return train_set[position]

    quick(Counting(), max_images=50)
    assert len(set(read)) == len(read) == 50
