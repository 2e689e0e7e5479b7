"""PSNR and Fréchet distance (rFID) of an autoencoder alone: the reference images after encoding and decoding."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from redi.core.registry import identity
from redi.data.datasets import Dataset
from redi.evaluation.metrics.frechet import Gaussian, frechet_distance
from redi.evaluation.records import conditions, entry, network_record, reference_record
from redi.evaluation.references import reference_features
from redi.evaluation.stored_statistics import StoredStatistics, ending, images_of
from redi.models.codec import JointCodec
from redi.models.encoders import Encoder
from redi.models.pretrained_network import networks_in


def check_reconstruction(reference: Dataset | StoredStatistics | None, networks: Sequence[Encoder] | None) -> None:
    """Raise ValueError if `evaluate.reconstruction` has no images or no networks."""
    if not networks:
        remedy = "set, for example, [encoders.DomainEncoder()], as in evaluator.gin, or inception.gin"
        raise ValueError(f"evaluate.reconstruction = True needs evaluate.networks, which is not bound: {remedy}")
    if images_of(reference) is None:
        is_bound = reference is not None
        what = "the images of the reference, but StoredStatistics has none" if is_bound else "evaluate.reference"
        remedy = "bind StoredStatistics.images" if is_bound else "bind it to a data set, such as the held-out images"
        raise ValueError(f"evaluate.reconstruction = True needs {what}: {remedy}")


def reconstruction_metrics(
    codec: JointCodec, reference: Dataset | StoredStatistics | None, networks: Sequence[Encoder], *,
    dataset: Dataset | None = None, samples: dict | None = None, max_images: int | None = None,
    cache_dir: str | Path | None = None, rank: int = 0, world_size: int = 1,
) -> list[dict]:  # fmt: skip
    """Encode and decode the images of the reference; return entries as those of `evaluate`.

    `reconstruction/psnr` is the mean over images of 10 log10(255^2 / MSE), in dB; infinite if an image is reproduced
    exactly. `reconstruction/<name of the Fréchet distance>`, for Inception rFID, compares the decoded images with the
    same images. The mean of the posterior is decoded (z itself if it is 'frozen'), rounded as in a cache.

    Args:
        networks: fitted or loaded, on their device.
        dataset: the training images, for the record of networks that learned from them.
        samples: the record of the samples in the same file, if any.
        max_images: maximum number of images; default: all.

    Raises ValueError: there are no images or networks, or values are not finite.
    """
    check_reconstruction(reference, networks)
    images = images_of(reference)
    assert images is not None
    compute = partial(
        reference_features, images, max_images=max_images, cache_dir=cache_dir, rank=rank, world_size=world_size
    )
    decoded = compute(Reconstructions(codec, networks)).tensors
    originals = [compute(network).tensors["pooled"] for network in networks]
    if rank > 0:
        return []
    common = conditions(samples or {}, None, reference_record(images)) | {"autoencoder": _provenance(codec)}
    count = len(decoded["mse"])
    make = partial(entry, num_samples=count, num_reference=count)
    psnr = (10 * (255**2 / decoded["mse"].double()).log10()).mean().item()
    entries = [make("reconstruction/psnr", [{"value": psnr}], better="higher", conditions=common)]
    for network, original in zip(networks, originals, strict=True):
        distance = frechet_distance(Gaussian.of(decoded[ending(network)]), Gaussian.of(original))
        name = f"reconstruction/{network.metric_name('frechet_distance')}"
        of = common | {"network": network_record(network, dataset)}
        entries.append(make(name, [{"value": distance}], better="lower", conditions=of))
    return entries


class Reconstructions(Encoder):
    """The squared error of images after encoding and decoding, and their features in other networks.

    As an `Encoder`, because `reference_features` caches the features of one and shares the work between processes.
    """

    dim = 1

    def __init__(self, codec: JointCodec, networks: Sequence[Encoder]):
        super().__init__()
        self.codec, self.networks = codec, tuple(networks)

    def load(self) -> None:
        self.codec.autoencoder.load()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the decoded images (N, 3, S, S) uint8."""
        autoencoder = self.codec.autoencoder
        with networks_in(self.codec.precision):
            # Zeros instead of noise: the mean of the posterior.
            return autoencoder.decode(autoencoder.latents(autoencoder.moments(images), torch.zeros))

    def metric_features(self, images: Tensor) -> dict[str, Tensor]:
        """Return {"mse": (N, 1), "<ending of a network's metrics>": (N, P)} float32."""
        images = images.to(self.codec.device)
        decoded = self(images)
        mse = (decoded.to(images.device).double() - images).square().flatten(1).mean(dim=1, keepdim=True)
        pooled = {ending(network): network.metric_features(decoded)["pooled"] for network in self.networks}
        return {"mse": mse.float()} | pooled

    def provenance(self) -> dict:
        sources = {ending(network): network.provenance() | _source(network) for network in self.networks}
        return {"encoder": "Reconstructions", "autoencoder": _provenance(self.codec), "networks": sources}


def _provenance(codec: JointCodec) -> dict:
    """Return everything that affects the decoded images, as JSON."""
    autoencoder = codec.autoencoder
    rule = {"uint8_rule": getattr(autoencoder.stores, "uint8_rule", "round")}
    return autoencoder.provenance() | rule | {"codec_precision": codec.precision} | _source(autoencoder)


def _source(component: object) -> dict:
    return {"source_sha256": source} if (source := identity(component).get("source_sha256")) else {}
