"""Encoders: their interface and registry. An encoder is a frozen network that maps images to patch features."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from redi.core.inputs import Checked, check_images
from redi.core.registry import Registry, discover


def check_square(images: Tensor) -> Tensor:
    """Return the images. Raises ValueError unless they are uint8 (N, 3, S, S)."""
    if check_images(images).shape[2] != images.shape[3]:
        raise ValueError(f"encoder images must be uint8 (N, 3, S, S), got {tuple(images.shape)}: crop them to squares")
    return images


class Encoder(Checked, nn.Module, ABC):
    """Map uint8 images (N, 3, S, S) to patch features (N, E, h, w) float32 with a frozen network.

    An encoder resizes and normalises the images itself. A component sets `dim` and implements `forward` and
    `provenance`. It may override `name`, `load`, `pooled`, `class_token` with `has_class_token`, and for metrics
    `metric_features` and `metric_name`. An encoder that is trained on the user's images also sets `learns_from_data`,
    implements `fit`, `fit_settings` and `fitted`, and stores what it learns in parameters and buffers.

    Examples:
        >>> import torch
        >>> class Colour(Encoder):  # the mean colour of every 16 x 16 patch
        ...     dim = 3
        ...     def forward(self, images): return nn.functional.avg_pool2d(images.float(), 16)
        ...     def provenance(self): return {"encoder": "Colour"}
        >>> Colour()(torch.zeros(2, 3, 256, 256, dtype=torch.uint8)).shape
        torch.Size([2, 3, 16, 16])
    """

    takes = dict.fromkeys(("forward", "pooled", "class_token", "metric_features"), check_square)
    dim: int  # E
    learns_from_data = False  # True: `prepare` trains it on the data set, and checkpoints store its weights
    has_class_token = False  # True: it implements `class_token`
    fitted = True  # False: `fit` must be called first

    @property
    def name(self) -> str:
        """Default name of the channel group: the class name in lower case, without 'Encoder'."""
        return type(self).__name__.removesuffix("Encoder").lower()

    def load(self) -> None:
        """Read pretrained weights now instead of at first use. Raises ValueError if they are missing."""

    def fit(self, dataset: Any) -> None:
        """Train on a data set (see `redi.data.datasets.Dataset`). Raises TypeError unless `learns_from_data`."""
        raise TypeError(f"{type(self).__name__}.learns_from_data = False: this encoder cannot be trained on a data set")

    def fit_settings(self) -> dict:
        """Return every setting that affects `fit`, as JSON. Raises TypeError unless `learns_from_data`."""
        raise TypeError(f"{type(self).__name__}.learns_from_data = False: this encoder cannot be trained on a data set")

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return the features (N, E, h, w) float32 of uint8 images (N, 3, S, S)."""

    def pooled(self, images: Tensor) -> Tensor:
        """Return one vector per uint8 image (N, 3, S, S): the mean of the features over the grid, (N, E) float32."""
        return self(images).mean(dim=(2, 3))

    def class_token(self, images: Tensor) -> Tensor:
        """Return the class tokens (N, E) float32 of uint8 images (N, 3, S, S), for `Representation.vector`."""
        raise ValueError(f"{type(self).__name__} has no class token: must be an encoder that has one, such as DINOv2")

    def metric_features(self, images: Tensor) -> dict[str, Tensor]:
        """Return {"pooled": (N, E) float32} of uint8 images (N, 3, S, S). `Inception` returns more features."""
        return {"pooled": self.pooled(images)}

    def metric_name(self, metric: str) -> str:
        """Return the name of a metric computed from these features, such as 'frechet_distance_dinov2'."""
        return f"{metric}_{self.name}"

    @abstractmethod
    def provenance(self) -> dict:
        """Return everything that affects the features, as JSON: name, settings, weights, resize rule."""


def features_of(encoder: Encoder, images: Tensor, vector: str | None = None) -> Tensor:
    """Return patch features (N, E, h, w); with `vector` 'class' or 'pooled' the class token or mean as (N, E, 1, 1)."""
    if vector is None:
        return encoder(images)
    return (encoder.class_token if vector == "class" else encoder.pooled)(images)[:, :, None, None]


encoders = Registry("encoders", Encoder, harmless=("weights",))
register = encoders.register
discover(__name__, encoders)
