"""Evaluation during training: fixed noise, the given weights, and names that state the number of samples."""

from functools import partial

import numpy as np
import pytest
import torch

from redi.core.objective import JointObjective
from redi.core.processes.flow_matching import FlowMatching
from redi.core.samplers.euler import Euler
from redi.data.datasets.adm_batch import AdmBatch
from redi.data.datasets.digits import Digits
from redi.evaluation.metrics.frechet import Gaussian, frechet_distance
from redi.evaluation.monitor import Monitor
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA
from redi.models.transformer import DiffusionTransformer
from redi.runtime.log import read_log
from redi.sampling.generate import generate
from redi.training.trainer import train

MODEL = partial(DiffusionTransformer, width=16, depth=1, num_heads=2, patch_size=4)
DRAW = partial(generate, sampler=Euler(num_evaluations=2))


@pytest.fixture(scope="module")
def images():
    return Digits().without(range(60, 1797))


@pytest.fixture(scope="module")
def codec():
    return JointCodec(autoencoder=Pixels(channels=1))


@pytest.fixture(scope="module")
def monitor(images):
    network = DomainEncoder(width=8, depth=1, image_size=8, num_steps=5, batch_size=16, seed=3)
    monitor = Monitor(networks=[network], num_images=20, generate=DRAW)
    monitor.prepare(images)
    return monitor


@pytest.fixture(scope="module")
def model(codec):
    torch.manual_seed(0)
    net = MODEL(**JointObjective(channels=codec.channels, num_classes=10).model_arguments(codec, Digits()))
    for parameter in net.parameters():  # a fresh model answers 0 everywhere
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def test_it_is_the_distance_of_the_drawn_images_to_the_reference(monitor, model, codec, images):
    measured = monitor(model, codec, FlowMatching())
    drawn = DRAW(model, codec, FlowMatching(), labels=torch.arange(20) % 10)
    network = monitor.networks[0]
    real = network.pooled(images.batch(range(len(images)))["images"])
    expected = frechet_distance(Gaussian.of(network.pooled(drawn.images)), Gaussian.of(real))
    assert measured["frechet_distance_domain_network_of_20"] == pytest.approx(expected, rel=1e-4)
    answers = network.logits(drawn.images).argmax(dim=1)
    assert measured["recognised_as_label_of_20"] == pytest.approx(float((answers == drawn.labels).float().mean()))


def test_the_same_weights_give_the_same_value_whatever_the_random_state(monitor, model, codec):
    torch.manual_seed(1)
    first = monitor(model, codec, FlowMatching())
    torch.manual_seed(2)
    assert monitor(model, codec, FlowMatching()) == first
    others = {name: 1.5 * p.detach() for name, p in model.named_parameters()}
    assert monitor(model, codec, FlowMatching(), weights=others) != first


def test_training_logs_it_on_schedule_and_learns_the_same(monitor, codec, images, tmp_path):
    settings = {"codec": codec, "dataset": images, "model": MODEL, "num_steps": 5, "batch_size": 8, "log_every": 5}
    settings |= {"preview": DRAW, "preview_images": 2, "device": "cpu", "check_memory": False}
    train(tmp_path / "with", monitor=monitor, monitor_every=2, **settings)
    train(tmp_path / "without", **settings)
    name = "monitor/frechet_distance_domain_network_of_20"
    entries = read_log(tmp_path / "with")
    assert [entry["step"] for entry in entries if name in entry] == [2, 4, 5]
    losses = [[e["loss"] for e in read_log(tmp_path / run) if "loss" in e] for run in ("with", "without")]
    assert losses[0] == losses[1]


def test_null_labels_are_drawn_and_recognised_as_nothing(images, monitor, model, codec):
    own = Monitor(networks=monitor.networks, num_images=20, labels="null", generate=DRAW)
    own.prepare(images)
    measured, labelled = own(model, codec, FlowMatching()), monitor(model, codec, FlowMatching())
    [name] = measured  # no recognised_as_label
    assert measured[name] != labelled[name]


def test_a_reference_of_its_own_wins(images, monitor):
    own = Monitor(networks=monitor.networks, reference=images.without(range(30)), num_images=20, generate=DRAW)
    own.prepare(images, reference=images)
    half = images.without(range(30))
    expected = Gaussian.of(monitor.networks[0].pooled(half.batch(range(30))["images"]))
    assert torch.allclose(own.reference_gaussians[0].mean, expected.mean, atol=1e-5)
    assert not torch.allclose(own.reference_gaussians[0].mean, monitor.reference_gaussians[0].mean, atol=1e-3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"networks": []}, "Monitor.networks is empty"),
        ({"networks": [DomainEncoder(width=8)], "num_images": 1}, "Monitor.num_images = 1"),
        ({"networks": [DomainEncoder(width=8)], "labels": "none"}, "Monitor.labels = 'none'"),
        ({"networks": [DomainEncoder(width=8)], "reference": PCA()}, "Monitor.reference must be one of datasets"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Monitor(**settings)


def test_it_must_be_prepared(model, codec):
    monitor = Monitor(networks=[DomainEncoder(width=8)], num_images=20)
    with pytest.raises(ValueError, match="prepare"):
        monitor(model, codec, FlowMatching())


def test_a_reference_of_another_resolution_is_refused(images, monitor, tmp_path):
    np.savez(tmp_path / "batch.npz", arr_0=np.zeros((3, 16, 16, 3), dtype=np.uint8))
    enlarged = AdmBatch(path=str(tmp_path / "batch.npz"))
    with pytest.raises(ValueError, match="Monitor.reference has images of 16 pixels, but the samples have 8"):
        Monitor(networks=monitor.networks, reference=enlarged).prepare(images)
