"""The configurations of the benchmarks, built without gin, files or downloads."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from redi.core.objective import JointObjective
from redi.fusion.merged import Merged
from redi.fusion.separate import Separate
from redi.models.autoencoders.pixels import Pixels
from redi.models.autoencoders.stable_vae import SD_VAE, StableVAE
from redi.models.codec import JointCodec, Representation
from redi.models.encoders.dinov2 import DINOv2
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA
from redi.models.transformer import DiffusionTransformer

FUSIONS = {"merged": Merged, "separate": Separate}


@dataclass(frozen=True)
class Setup:
    """A model and its image size. Representations have 8 channels unless stated otherwise."""

    size: str
    image_size: int
    num_classes: int
    sides: dict = field(default_factory=dict)  # width, depth and heads that differ from those of the size

    @property
    def is_small(self) -> bool:
        """Whether this is the quickstart: pixels and a small encoder instead of SD-VAE and DINOv2-B."""
        return self.image_size < 32


SETUPS = {
    "quickstart": Setup("S/2", 8, 10, {"width": 128, "depth": 5, "num_heads": 4}),
    "B/2": Setup("B/2", 256, 1000),
    "XL/2": Setup("XL/2", 256, 1000),
}


class Undecoded(StableVAE):
    """SD-VAE latents that are not decoded, because decoding is not measured."""

    def decode(self, latents: Tensor) -> Tensor:
        return torch.zeros(len(latents), 3, 1, 1, dtype=torch.uint8)


def make_codec(
    setup: Setup, *, ranks: Sequence[int] = (8,), weights: dict | None = None, precision: str = "float32"
) -> JointCodec:
    """Return a codec with one representation per entry of `ranks`, random networks and a PCA of noise.

    Args:
        weights: {"autoencoder": path, "encoder": path} of `random_weights`, for encoding images of 256 pixels.
        precision: in which they encode.
    """
    torch.manual_seed(0)
    representations = []
    for number, rank in enumerate(ranks):
        reducer = PCA(rank=rank)
        if setup.is_small:
            encoder = _domain_encoder()
        else:
            encoder = DINOv2(weights=weights and weights["encoder"])
        reducer.load_state_dict(_fit(encoder.dim))
        name = encoder.name + (f"_{number + 1}" if number else "")
        representations.append(Representation(encoder=encoder, reducer=reducer, name=name))
    if setup.is_small:
        autoencoder = Pixels(channels=1)
    else:
        autoencoder = StableVAE(weights=weights["autoencoder"]) if weights else Undecoded()
    return JointCodec(autoencoder=autoencoder, representations=representations, precision=precision)


def make_model(
    setup: Setup, codec: JointCodec, *, fusion: str = "merged", device: str = "cpu", trained: bool = True, **options
) -> tuple[DiffusionTransformer, JointObjective]:
    """Return a model and its objective.

    Args:
        trained: replace zero-initialised weights by random ones.
        options: further arguments of the model, such as `attention` or `checkpointing`.
    """
    torch.manual_seed(0)
    objective = JointObjective(channels=codec.channels, num_classes=setup.num_classes)
    arguments = {"channels": codec.channels, "grid": codec.grid(setup.image_size), "num_classes": setup.num_classes}
    with torch.device(device):  # XL/2 takes ten seconds on a CPU
        model = DiffusionTransformer(**arguments, size=setup.size, **setup.sides, fusion=FUSIONS[fusion], **options)
    if trained:
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return model.to(device), objective


def make_batch(setup: Setup, codec: JointCodec, n: int, *, device: str = "cpu", images: bool = False) -> dict:
    """Return {"images": ...} or cached values for n images, and labels, all noise."""
    torch.manual_seed(1)
    batch = {"labels": torch.randint(setup.num_classes, (n,))}
    pixels = torch.randint(256, (n, 3, setup.image_size, setup.image_size), dtype=torch.uint8)
    if images:
        batch["images"] = pixels
    elif setup.is_small:
        batch |= codec.precompute(pixels)
    else:
        mean, logvar = torch.randn(n, 4, 32, 32) / codec.autoencoder.scale, torch.full((n, 4, 32, 32), -10.0)
        batch["image"] = torch.cat([mean, logvar], dim=1).half()
        for name, representation in codec.representations.items():
            batch[name] = torch.randn(n, representation.reducer.store_rank, 16, 16).half()
    return {name: tensor.to(device) for name, tensor in batch.items()}


def random_weights(folder: str | Path) -> dict[str, str]:
    """Write an SD-VAE and a DINOv2-B of real size with random weights, in the formats of the downloads."""
    import timm
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder = Path(folder)
    AutoencoderKL.from_config(SD_VAE).save_pretrained(folder / "autoencoder")
    network = timm.create_model(DINOv2().architecture.name, pretrained=False)
    (folder / "encoder").mkdir()
    save_file(network.state_dict(), folder / "encoder" / "model.safetensors")
    return {name: str(folder / name) for name in ("autoencoder", "encoder")}


@cache
def _fit(width: int) -> dict[str, Tensor]:
    """Return the state of a PCA of noise."""
    reducer = PCA(rank=1)
    reducer.fit([torch.randn(64, width, 4, 4)])
    return reducer.state_dict()


def _domain_encoder() -> DomainEncoder:
    from redi.data.datasets.digits import Digits

    encoder = DomainEncoder(image_size=16, num_steps=1)
    encoder.fit(Digits())
    return encoder
