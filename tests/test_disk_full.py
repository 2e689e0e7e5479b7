"""A disk that is full: what could not be written is said, nothing half-written stays, and what is freed is enough."""

import os
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from redi.core.processes.flow_matching import FlowMatching
from redi.core.samplers.euler import Euler
from redi.data.cache.prepare import prepare
from redi.data.datasets.digits import Digits
from redi.evaluation.references import reference_features
from redi.evaluation.samples.sample import sample
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA
from redi.models.transformer import DiffusionTransformer
from redi.sampling.generate import generate

PAGE = 4096


@pytest.fixture
def disk(mounted):
    """A file system of 2 MiB."""
    return mounted("2m")


def fill(disk, but_for=0):
    """Another program's file takes all space but so many pages."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(free - but_for * PAGE))


def others_take_the_space(monkeypatch, disk):
    """What is free is looked at, and gone a moment later."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**40))


@pytest.fixture(scope="module")
def images():
    return Digits().without(range(200, 1438))


def prepared(folder, images):
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=2, batch_size=16)
    representations = [Representation(encoder=encoder, reducer=PCA(rank=3))]
    codec = JointCodec(autoencoder=Pixels(channels=1), representations=representations)
    return codec, prepare(codec=codec, dataset=images, cache_dir=folder, rows_per_shard=50)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def half_written(folder):
    return [path for path in folder.rglob("*") if path.suffix == ".partial"]


# How many pages are free when it begins: so the disk is full at another point each time.
@pytest.mark.parametrize("but_for", [0, 3, 7, 12, 16])
@pytest.mark.parametrize("looked_at", [True, False])
def test_fits_and_cache_go_on_once_there_is_space(disk, images, tmp_path, monkeypatch, but_for, looked_at):
    fill(disk, but_for)
    with monkeypatch.context() as patch, pytest.raises(OSError, match=f"{disk}/") as caught:
        if not looked_at:
            others_take_the_space(patch, disk)
        prepared(disk / "cache", images)
    assert "space" in str(caught.value)
    assert half_written(disk) == []
    (disk / "filler").unlink()
    prepared(disk / "cache", images)
    prepared(tmp_path / "unbroken", images)
    assert contents(disk / "cache") == contents(tmp_path / "unbroken")


@pytest.fixture(scope="module")
def trained():
    codec = JointCodec(autoencoder=Pixels(channels=1), representations=[])
    torch.manual_seed(0)
    model = DiffusionTransformer(
        channels=codec.channels, grid=(8, 8), num_classes=3, width=16, depth=1, num_heads=2, patch_size=2
    )
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return SimpleNamespace(
        model=model,
        codec=codec,
        process=FlowMatching(),
        weights={"ema": weights},
        step=7,
        num_classes=3,
        folder=None,
        class_names=None,
    )


def drawn(folder, trained):
    few = partial(generate, sampler=Euler(num_evaluations=1))
    return sample(folder, trained=trained, num_images=100, images_per_part=20, generate=few, key="few")


@pytest.mark.parametrize("but_for", [0, 2, 20])
@pytest.mark.parametrize("looked_at", [True, False])
def test_samples_go_on_once_there_is_space(disk, trained, tmp_path, monkeypatch, but_for, looked_at):
    fill(disk, but_for)
    with monkeypatch.context() as patch, pytest.raises(OSError, match=f"{disk}/") as caught:
        if not looked_at:
            others_take_the_space(patch, disk)
        drawn(disk / "run", trained)
    assert "space" in str(caught.value)
    assert half_written(disk) == [] and not (disk / "run" / "samples").exists()
    (disk / "filler").unlink()
    drawn(disk / "run", trained).verify()
    drawn(tmp_path / "unbroken", trained)
    assert contents(disk / "run") == contents(tmp_path / "unbroken")


def test_reference_features_go_on_once_there_is_space(disk, images, tmp_path):
    network = DomainEncoder(width=48, depth=1, image_size=8, num_steps=2, batch_size=16)
    network.fit(images)
    expected = reference_features(images, network, cache_dir=tmp_path)
    fill(disk, but_for=4)
    with pytest.raises(OSError, match=f"not enough disk space for {disk}/.* needed, .* free"):
        reference_features(images, network, cache_dir=disk)
    assert half_written(disk) == []
    (disk / "filler").unlink()
    found = reference_features(images, network, cache_dir=disk)
    assert torch.equal(found.tensors["pooled"], expected.tensors["pooled"])
