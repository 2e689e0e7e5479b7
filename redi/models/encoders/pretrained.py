"""Pretrained vision encoders: what the families have in common."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from redi.models.encoders import Encoder
from redi.models.encoders.architecture import FEATURES, describe
from redi.models.encoders.weights import build, find_weights
from redi.models.pretrained_network import PretrainedNetwork


class PretrainedEncoder(PretrainedNetwork, Encoder):
    """A timm model, without what its layers do not need, whose patch features are used.

    Args:
        model: timm's name of it.
        image_size: the side in pixels that images are resized to; a multiple of the patch size. Default: the patch
            size for every 16 pixels of the image, which gives a 16x16 grid at 256 pixels and 32x32 at 512 (paper:
            images of 256 pixels at 224, for patches of 14).
        resize: 'antialiased' (bicubic, before normalising), or 'released': the rule of ReDi's released code, which
            its published weights need (bicubic without antialiasing, after normalising).
        layers: block whose features are taken, or several, concatenated along E in this order; negative numbers
            count from the last. All pass the final norm. Default: the last block.
        weights: a weights file (.safetensors, .pth, .bin; timm's format or the authors'), or a folder with one.
            Default: from the model hub, or its local cache.
        weights_sha256, precision: see `PretrainedNetwork`. The features are float32 either way.

    Raises:
        ValueError: a setting that the model cannot have.
    """

    def __init__(
        self,
        *,
        model: str,
        image_size: int | None = None,
        resize: Literal["antialiased", "released"] = "antialiased",
        layers: int | Sequence[int] | None = None,
        weights: str | None = None,
        weights_sha256: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
    ):
        super().__init__(weights=weights, weights_sha256=weights_sha256, precision=precision)
        self.architecture = describe(model, self._binding("model"))
        self.layers = self._checked_layers(-1 if layers is None else layers)
        self.dim = sum(self.architecture.widths[i] for i in self.layers)
        self.stride = self.architecture.strides[self.layers[0]]
        if image_size is None and self.architecture.fixed:
            image_size = self.architecture.native_size
        self.image_size = image_size
        if image_size is not None:
            self._check_image_size(image_size)
        if resize not in ("antialiased", "released"):
            raise ValueError(f"{self._binding('resize')} = {resize!r}: it is 'antialiased' or 'released'")
        self.resize = resize
        # Not persistent: constants of the model.
        for name in ("mean", "std"):
            values = torch.tensor(self.architecture.config[name])[:, None, None]  # (3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, S, S) -> features (N, E, h, w) float32. Raises ValueError for a size without a grid."""
        by_layer = self._by_layer(images)
        return torch.cat([by_layer[layer].float() for layer in self.layers], dim=1)

    @torch.no_grad()
    def pooled(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, S, S) -> one vector an image, (N, E) float32: the class token after the final norm where
        the model has one (of every layer, as in `forward`), else the mean over the grid.

        FD-DINOv2 of Stein et al. (arXiv 2306.04675) is the Fréchet distance in the class tokens of
        DINOv2(size='L', registers=False, image_size=224), resized before normalising, as 'antialiased' does.
        """
        network = self.network
        # Where timm keeps a class token to itself (CaiT, XCiT), it enters after the patches are done.
        given = "return_prefix_tokens" in inspect.signature(network.forward_intermediates).parameters
        if getattr(network, "cls_token", None) is None or not given:
            return super().pooled(images)
        by_layer = self._by_layer(images, return_prefix_tokens=True)
        # Registers, where there are any, follow the class token.
        return torch.cat([by_layer[layer][1][:, 0].float() for layer in self.layers], dim=1)

    def inputs(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, S, S) -> what the network sees, (N, 3, side, side) float32."""
        side = self.side(images.shape[-1])
        pixels = images.float() / 255
        if side == images.shape[-1]:
            return (pixels - self.mean) / self.std
        if self.resize == "released":
            return functional.interpolate((pixels - self.mean) / self.std, (side, side), mode="bicubic")
        resized = functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
        return (resized.clamp(0, 1) - self.mean) / self.std

    def _by_layer(self, images: Tensor, **options) -> dict:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
            raise ValueError(f"images are uint8 (N, 3, S, S), got {images.dtype} {tuple(images.shape)}")
        network, inputs = self.network, self.inputs(images.to(self.anchor.device))
        with self._autocast():
            outputs = network.forward_intermediates(inputs, indices=list(self.layers), **FEATURES, **options)
        return dict(zip(sorted(self.layers), outputs, strict=True))  # timm gives them in the network's order

    def side(self, image_size: int) -> int:
        """The side in pixels that images of this size are resized to."""
        if self.image_size is not None:
            return self.image_size
        if image_size < 16 or image_size % 16:
            raise ValueError(
                f"images of {image_size} pixels are no whole number of 16-pixel patches: bind "
                f"{self._binding('image_size')} to a multiple of {self.stride}, or change Preprocessing.image_size"
            )
        return self.stride * (image_size // 16)

    def provenance(self) -> dict:
        """As JSON. The hash is of the tensors in the weights file, before timm's conversion, whose floating-point
        resampling may differ between machines."""
        import timm

        return {
            "encoder": type(self).__name__,
            "timm_model": self.architecture.name,
            "timm": timm.__version__,
            "layers": list(self.layers),
            "image_size": self.image_size or f"{self.stride}/16",
            "resize": self.resize,
            "mean": list(self.architecture.config["mean"]),
            "std": list(self.architecture.config["std"]),
            "precision": self.precision,
            "weights_sha256": self._known_sha256(),
        }

    def _weights_path(self) -> Path:
        return find_weights(self.architecture, self.weights, self._binding("weights"))

    def _build(self, path: Path, tensors: dict[str, Tensor]) -> nn.Module:
        network = build(self.architecture, path, tensors, self._binding("weights"))
        network.prune_intermediate_layers(list(self.layers), prune_norm=False, prune_head=True)
        return network

    def _checked_layers(self, layers: int | Sequence[int]) -> tuple[int, ...]:
        given = (layers,) if isinstance(layers, int) else tuple(layers)
        strides = self.architecture.strides
        if not given or not all(isinstance(i, int) and -len(strides) <= i < len(strides) for i in given):
            raise ValueError(
                f"{self._binding('layers')} = {layers!r}: {self.architecture.name} has the layers 0 to "
                f"{len(strides) - 1}; negative numbers count from the last"
            )
        chosen = tuple(i % len(strides) for i in given)
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"{self._binding('layers')} = {layers!r} names a layer twice")
        if len({strides[i] for i in chosen}) > 1:
            grids = ", ".join(f"layer {i}: {strides[i]}" for i in chosen)
            raise ValueError(f"{self._binding('layers')} = {layers!r}: their strides differ ({grids}); take one stage")
        return chosen

    def _check_image_size(self, image_size: int) -> None:
        given, name = f"{self._binding('image_size')} = {image_size}", self.architecture.name
        if self.architecture.fixed and image_size != self.architecture.native_size:
            raise ValueError(f"{given}: {name} takes images of {self.architecture.native_size} pixels only")
        if image_size < self.stride or image_size % self.stride:
            raise ValueError(f"{given} is no multiple of {self.stride}, the patch size of {name}")


def of_size(models: Mapping[str, str], size: str, binding: str) -> str:
    """The model of this size. Raises ValueError for a size that the family does not have."""
    if size not in models:
        raise ValueError(f"{binding} = {size!r}: it is one of {', '.join(models)}")
    return models[size]
