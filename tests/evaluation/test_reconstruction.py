"""The autoencoder alone: PSNR and the Fréchet distance of reconstructions, against closed forms."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from redi.core import config
from redi.data.datasets.digits import Digits
from redi.evaluation.evaluate import evaluate
from redi.evaluation.reconstruction import reconstruction_metrics
from redi.evaluation.records import REQUIRED
from redi.evaluation.stored_statistics import StoredStatistics
from redi.models.autoencoders import Autoencoder
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec
from redi.models.encoders import Encoder
from redi.runs.experiment import Experiment
from redi.runs.prepare import prepare_run


class Patches(Encoder):
    """The means of four quarters of the image."""

    dim = 4

    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images[:, :1].float() / 255, 4).flatten(1)[..., None, None]

    def provenance(self) -> dict:
        return {"encoder": "Patches"}


class Damaged(Autoencoder):
    """Pixels whose decoder adds an error: 4 to the images of a bright half, 16 to the others."""

    channels, downsample = 3, 1

    def __init__(self, errors=(4, 16)):
        super().__init__()
        self.errors, self.decoded = errors, 0

    def moments(self, images: Tensor) -> Tensor:
        return images

    def latents(self, moments: Tensor, randn=torch.randn) -> Tensor:
        return moments.float() + 100 * randn(moments.shape, dtype=torch.float32, device=moments.device)

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded += len(latents)
        return (latents + self.added(latents)).to(torch.uint8)

    def added(self, images: Tensor) -> Tensor:
        """The error (N, 1, 1, 1): away from the ends of the range, the sign changes from pixel to pixel."""
        size = torch.where(images.flatten(1).mean(dim=1) > 80, *map(float, self.errors))[:, None, None, None]
        return torch.where(images > 128, -size, size)

    def provenance(self) -> dict:
        return {"autoencoder": "Damaged", "errors": list(self.errors)}


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(split="held_out")


def measured(autoencoder: Autoencoder, images: Digits, **settings) -> dict[str, float]:
    entries = reconstruction_metrics(JointCodec(autoencoder), images, [Patches()], **settings)
    assert all(name in one for one in entries for name in REQUIRED)
    return {one["metric"]: one["value"] for one in entries}


def test_psnr_is_the_mean_over_images(digits):
    images = digits.batch(range(len(digits)))["images"]
    sizes = Damaged().added(images.float()).abs().flatten()
    assert 0.1 < (sizes == 4).float().mean() < 0.9
    psnr = np.mean([20 * math.log10(255 / size) for size in sizes.tolist()])
    assert measured(Damaged(), digits)["reconstruction/psnr"] == pytest.approx(psnr, rel=1e-6)


def test_the_distance_is_that_of_decoded_and_original_images(digits):
    images = digits.batch(range(len(digits)))["images"]
    sets = [Patches()(one)[:, :, 0, 0].double().numpy() for one in (images, Damaged().decode(images.float()))]
    (mean, other), (a, b) = [one.mean(0) for one in sets], [np.cov(one.T) for one in sets]
    expected = ((mean - other) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert measured(Damaged(), digits)["reconstruction/frechet_distance_patches"] == pytest.approx(expected, rel=1e-4)


def test_pixels_lose_nothing(digits):
    assert measured(Pixels(), digits) == {
        "reconstruction/psnr": math.inf, "reconstruction/frechet_distance_patches": pytest.approx(0, abs=1e-9)
    }  # fmt: skip


def test_a_damaged_decoder_is_told_apart(digits):
    worse, better = measured(Damaged((30, 30)), digits), measured(Damaged((2, 2)), digits)
    psnr, distance = better
    assert worse[psnr] < better[psnr] - 20 and worse[distance] > 50 * better[distance]


def test_reconstructions_are_cached_by_autoencoder_and_images(digits, tmp_path):
    first, again = Damaged((3, 3)), Damaged((3, 3))
    values = measured(first, digits, cache_dir=tmp_path, max_images=20)
    assert measured(again, digits, cache_dir=tmp_path, max_images=20) == values
    assert (first.decoded, again.decoded) == (20, 0)


def test_what_cannot_be_measured_is_refused(digits, tmp_path):
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    stored, codec = StoredStatistics(path=tmp_path / "statistics.npz", network="patches"), JointCodec()
    with pytest.raises(ValueError, match="needs evaluate.reference: bind it to a data set"):
        reconstruction_metrics(codec, None, [Patches()])
    with pytest.raises(ValueError, match="but StoredStatistics has none: bind StoredStatistics.images"):
        reconstruction_metrics(codec, stored, [Patches()])
    with pytest.raises(ValueError, match="needs evaluate.networks, which is not bound: set"):
        reconstruction_metrics(codec, digits, [])
    with pytest.raises(ValueError, match="needs the autoencoder: pass trained"):
        evaluate(tmp_path, dataset=Digits(split="train"), reference=digits, networks=[Patches()], reconstruction=True)


@pytest.mark.parametrize("bindings", [["evaluate.reconstruction = True"], []])
def test_a_run_measures_its_autoencoder_before_the_first_step_on_request(tiny_gin, tmp_path, capsys, bindings):
    config.parse([tiny_gin], ["train.device = 'cpu'", "evaluate.max_images = 30", *bindings])
    prepare_run(Experiment(tmp_path))
    file: Path = tmp_path / "reconstruction.json"
    assert file.exists() is bool(bindings) is ("reconstruction/psnr" in capsys.readouterr().out)
    if bindings:
        psnr, distance = json.loads(file.read_text())
        assert psnr["value"] == math.inf and distance["metric"] == "reconstruction/frechet_distance_domain_network"


def test_a_request_without_images_is_refused_before_anything_is_fitted(tiny_gin, tmp_path):
    config.parse([tiny_gin], ["train.device = 'cpu'", "evaluate.reconstruction = True", "evaluate.reference = None"])
    with pytest.raises(ValueError, match="evaluate.reconstruction = True needs evaluate.reference"):
        prepare_run(Experiment(tmp_path))
