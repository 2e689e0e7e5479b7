"""Features of any timm vision model, chosen by its name or by family and size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from redi.models.encoders import Encoder, check_square, register
from redi.models.encoders.architecture import FEATURES, timm_architecture
from redi.models.encoders.weights import build, hub_weights
from redi.models.pretrained_network import PretrainedNetwork, with_keywords_of
from redi.runtime.ranges import check_choice


@register
class Timm(PretrainedNetwork, Encoder):
    """Features of any timm model with feature maps: vision transformers, ConvNeXt, ResNet and others.

    Args:
        model: name of a timm model with the tag of the weights, such as 'vit_base_patch16_224.mae' (default tag:
            timm's first); `timm.list_models(pretrained=True)` lists them.
        image_size: size in pixels that images are resized to, a multiple of the patch size. Default: one patch per 16
            pixels of the image (256 -> 224 for patch size 14), or the fixed size of the network.
        resize: 'antialiased' (bicubic, before normalising), or 'released' (bicubic without antialiasing, after
            normalising), as in the paper's released code; its published weights need this.
        layers: index of the block (or stage) that gives the features, or several indices. Negative indices count from
            the end; default: the last layer.
        combine: how several layers become one: 'concatenate' (along E, in the order of `layers`), 'sum' or 'mean'.
        final_norm: apply the network's final norm to every layer (timm has none after the inner stages of ConvNeXt);
            'plain': without its learned weight and bias, as in RAE (arXiv 2510.11690) and RAEv2; False: apply none.
        weights: a weights file (.safetensors, .pth, .bin; timm's format or the authors'), or a folder with one.
            Default: from the model hub, or its local cache.
        weights_sha256, precision: see `PretrainedNetwork`. The features are float32 in any precision.

    Examples:
        >>> resnet = Timm("resnet18.a1_in1k", layers=2)  # weights are read at first use
        >>> resnet.dim, resnet.stride  # the features of stage 2 have 128 channels and stride 8
        (128, 8)
    """

    mean: Tensor  # (3, 1, 1), as `std`
    std: Tensor

    def __init__(
        self, model: str = "vit_base_patch16_224.mae", *, image_size: int | None = None,
        resize: Literal["antialiased", "released"] = "antialiased", layers: int | Sequence[int] | None = None,
        combine: Literal["concatenate", "sum", "mean"] = "concatenate",
        final_norm: Literal[True, False, "plain"] = True,
        weights: str | None = None, weights_sha256: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
    ):  # fmt: skip
        super().__init__(weights=weights, weights_sha256=weights_sha256, precision=precision)
        self.architecture = architecture = timm_architecture(model, self._binding("model"))
        self.layers = self._checked_layers(-1 if layers is None else layers)
        self._check_combination(combine, final_norm)
        self.combine, self.final_norm = combine, final_norm
        widths = [architecture.widths[i] for i in self.layers]
        self.dim = sum(widths) if combine == "concatenate" else widths[0]
        self.stride = architecture.strides[self.layers[0]]
        if image_size is not None:
            self._check_image_size(image_size)
        self.image_size = architecture.fixed_size if image_size is None else image_size
        check_choice(self._binding("resize"), resize, ("antialiased", "released"))
        self.resize = resize
        for name in ("mean", "std"):  # not persistent: constants of the model
            self.register_buffer(name, torch.tensor(architecture.config[name])[:, None, None], persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, E, h, w) float32 of uint8 images (N, 3, S, S). Raises ValueError as `side` does."""
        by_layer = self._by_layer(images)
        return self._combined([by_layer[layer].float() for layer in self.layers])

    @torch.no_grad()
    def pooled(self, images: Tensor) -> Tensor:
        """Return the class tokens (N, E) float32 of uint8 images (N, 3, S, S); for models without them, grid means.

        The class tokens of several `layers` are combined as the features are. FD-DINOv2 (Stein et al., arXiv
        2306.04675) uses those of DINOv2(size='L', registers=False, image_size=224).
        """
        return self.class_token(images) if self.has_class_token else super().pooled(images)

    @property
    def has_class_token(self) -> bool:  # type: ignore[override]  # a plug-in may set the attribute
        """Whether timm returns the class token of this network. It has 'cls_token' in the architecture."""
        return self.architecture.has_class_token

    @torch.no_grad()
    def class_token(self, images: Tensor) -> Tensor:
        """Return the class tokens (N, E) float32 of uint8 images (N, 3, S, S), combined as the features are."""
        if not self.has_class_token:
            return super().class_token(images)
        by_layer = self._by_layer(images, return_prefix_tokens=True)
        # Register tokens follow the class token.
        return self._combined([by_layer[layer][1][:, 0].float() for layer in self.layers])

    def inputs(self, images: Tensor) -> Tensor:
        """Return the network's input (N, 3, side, side) float32 from uint8 images (N, 3, S, S)."""
        side, pixels = self.side(check_square(images).shape[-1]), images.float() / 255
        if side != images.shape[-1] and self.resize == "released":
            return functional.interpolate((pixels - self.mean) / self.std, (side, side), mode="bicubic")
        if side != images.shape[-1]:
            pixels = functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - self.mean) / self.std

    def side(self, image_size: int) -> int:
        """Return the size in pixels that images of size `image_size` are resized to.

        Raises ValueError if the constructor's `image_size` is not set and this size is not a multiple of 16.
        """
        if self.image_size is not None:
            return self.image_size
        if image_size < 16 or image_size % 16:
            what = f"images of {image_size} pixels cannot be divided into patches of 16 pixels: change"
            setting = f"{self._binding('image_size')} to a multiple of {self.stride}"
            raise ValueError(f"{what} Preprocessing.image_size, or set {setting}")
        return self.stride * (image_size // 16)

    def provenance(self) -> dict:
        import timm

        config = self.architecture.config
        # Defaults are left out, so that older caches stay valid.
        combination: dict = {} if self.combine == "concatenate" else {"combine": self.combine}
        combination |= {} if self.final_norm is True else {"final_norm": self.final_norm}
        return {
            "encoder": type(self).__name__, "timm_model": self.architecture.name, "timm": timm.__version__,
            "layers": list(self.layers), "image_size": self.image_size or f"{self.stride}/16", "resize": self.resize,
            "mean": list(config["mean"]), "std": list(config["std"]), "precision": self.precision,
            "weights_sha256": self._sha256(),  # before timm's conversion, whose rounding depends on the machine
            **combination,
        }  # fmt: skip

    def _by_layer(self, images: Tensor, **options: Any) -> dict[int, Any]:
        network, inputs = self.network, self.inputs(images.to(self.anchor.device))
        with self._autocast():
            options = FEATURES | {"norm": bool(self.final_norm)} | options
            outputs = network.forward_intermediates(inputs, indices=list(self.layers), **options)
        return dict(zip(sorted(self.layers), outputs, strict=True))  # timm returns them in the network's order

    def _combined(self, by_layer: list[Tensor]) -> Tensor:
        """Return one tensor (N, E, ...) of those of the layers."""
        if self.combine == "concatenate":
            return torch.cat(by_layer, dim=1)
        total = torch.stack(by_layer).sum(dim=0)
        return total / len(by_layer) if self.combine == "mean" else total

    def _weights_path(self) -> Path:
        return Path(self.weights) if self.weights else hub_weights(self.architecture, self._binding("weights"))

    def _build(self, path: Path, tensors: dict[str, Tensor]) -> Any:
        network = build(self.architecture, path, tensors, self._binding("weights"))
        network.prune_intermediate_layers(list(self.layers), prune_norm=False, prune_head=True)
        if self.final_norm == "plain":
            for name, parameter in network.norm.named_parameters():
                parameter.detach().fill_(name == "weight")
        return network

    def _checked_layers(self, layers: int | Sequence[int]) -> tuple[int, ...]:
        numbers = (layers,) if isinstance(layers, int) else tuple(layers)
        strides, setting = self.architecture.strides, f"{self._binding('layers')} = {layers!r}"
        last = len(strides) - 1
        if not numbers or not all(isinstance(i, int) and -last - 1 <= i <= last for i in numbers):
            raise ValueError(f"{setting}: must be in {-last - 1} ... {last}, the layers of {self.architecture.name}")
        numbers = tuple(i % len(strides) for i in numbers)
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"{setting} names a layer twice: name each layer once")
        if len({strides[i] for i in numbers}) > 1:
            grids = ", ".join(f"layer {i}: {strides[i]}" for i in numbers)
            raise ValueError(f"{setting}: the layers have different strides ({grids}); choose layers of one stride")
        return numbers

    def _check_combination(self, combine: str, final_norm: bool | str) -> None:
        check_choice(self._binding("combine"), combine, ("concatenate", "sum", "mean"))
        check_choice(self._binding("final_norm"), final_norm, (True, False, "plain"))
        if final_norm == "plain" and "norm.weight" not in self.architecture.names:
            what = f"must be True or False, because {self.architecture.name} has no final norm with weights"
            raise ValueError(f"{self._binding('final_norm')} = 'plain': {what}")

    def _check_image_size(self, image_size: int) -> None:
        setting, name = f"{self._binding('image_size')} = {image_size}", self.architecture.name
        if self.architecture.fixed_size not in (None, image_size):
            raise ValueError(f"{setting}: must be {self.architecture.fixed_size}, the only size of {name}")
        if image_size < self.stride or image_size % self.stride:
            raise ValueError(f"{setting}: must be a multiple of {self.stride}, the patch size of {name}")


class Family(Timm):
    """A family of timm models, chosen by size. A subclass sets `models`, and a default size as in `CLIP`.

    Args:
        size: a key of `models`.

    Examples:
        >>> class MAE(Family):
        ...     models = {"B": "vit_base_patch16_224.mae", "L": "vit_large_patch16_224.mae"}
        >>> MAE("L").dim
        1024
    """

    models: ClassVar[Mapping[str, str]]  # {size: timm's name with the tag of the weights}

    @with_keywords_of(Timm.__init__)
    def __init__(self, size: str, **settings: Any):
        super().__init__(model=self.model_of(size), **settings)

    @classmethod
    def model_of(cls, size: str) -> str:
        """Return timm's name of the model of this size. Raises ValueError for an unknown size."""
        if size not in cls.models:
            raise ValueError(f"{cls.__name__}.size = {size!r}: must be one of {', '.join(cls.models)}")
        return cls.models[size]
