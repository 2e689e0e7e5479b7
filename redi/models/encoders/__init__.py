"""Vision encoders: frozen networks whose patch features are generated with the image, and the registry of them."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from redi.core.inputs import Checked, check_images
from redi.core.registry import Registry, discover


def check_square(images: Tensor) -> Tensor:
    """The images, if they are uint8 (N, 3, S, S). Raises as `check_images`."""
    if check_images(images).shape[2] != images.shape[3]:
        raise ValueError(f"an encoder's images are uint8 (N, 3, S, S), but got {tuple(images.shape)}: crop them")
    return images


class Encoder(Checked, nn.Module, ABC):
    """uint8 images (N, 3, S, S) -> patch features (N, E, h, w) float32. Frozen; resizes and normalises itself.

    A component sets `dim` and implements `forward` and `provenance`. One that is trained here sets `learns_from_data`,
    implements `fit`, `fit_settings` and `fitted`, and keeps all that it learns in parameters and buffers which
    `__init__` makes. It may override `name`, `load`, and for metrics `pooled`, `metric_features` and `metric_name`.
    """

    takes = dict.fromkeys(("forward", "pooled", "metric_features"), check_square)
    dim: int  # E
    learns_from_data = False  # True: `prepare` trains it on the data set, and checkpoints hold its weights
    fitted = True  # whether its weights are ready for use, or will be at first use (see `load`)

    @property
    def name(self) -> str:
        """What its channel group is called by default: the class name without 'Encoder', in lower case."""
        return type(self).__name__.removesuffix("Encoder").lower()

    def load(self) -> None:
        """Read pretrained weights now instead of at first use. Raises ValueError naming the file, its source and the
        binding if they are missing.
        """

    def fit(self, dataset) -> None:
        """Learns from a data set (see `redi.data.datasets.Dataset`), where `learns_from_data`."""
        raise TypeError(f"{type(self).__name__} learns nothing from data")

    def fit_settings(self) -> dict:
        """What `fit` depends on beside the data, as JSON."""
        raise TypeError(f"{type(self).__name__} learns nothing from data")

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, S, S) -> features (N, E, h, w) float32."""

    def pooled(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, S, S) -> one vector an image, (N, P) float32: the features averaged over the grid."""
        return self(images).mean(dim=(2, 3))

    def metric_features(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 images (N, 3, S, S) -> what metrics look at: "pooled" (N, P) float32, and in some networks more."""
        return {"pooled": self.pooled(images)}

    def metric_name(self, metric: str) -> str:
        """What a metric in these features is called, such as 'frechet_distance_dinov2'."""
        return f"{metric}_{self.name}"

    @abstractmethod
    def provenance(self) -> dict:
        """What decides the features, as JSON: name, settings, weights, resize rule."""


encoders = Registry("encoders", Encoder, harmless=("weights",))
register = encoders.register
discover(__name__, encoders)
