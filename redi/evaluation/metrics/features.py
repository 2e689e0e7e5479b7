"""Features of a set of images, tagged as those of samples or of the reference."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ROLES = ("samples", "reference")
CHUNK = 4096  # rows converted to float64 at a time


@dataclass
class Features:
    """Features of a set of images in one network, one row per image.

    Precision, recall and the Inception Score change their meaning if samples and reference are swapped, but still look
    plausible. Each set therefore has a role, and swapping them raises an error.
    """

    role: Literal["samples", "reference"]
    tensors: dict[str, Tensor]  # "pooled" (N, P) float32 and the others of `Encoder.metric_features`, on the CPU

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"Features.role = {self.role!r}: must be 'samples' or 'reference'")
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if not shapes or any(len(shape) != 2 for shape in shapes.values()):
            raise ValueError(f"Features.tensors = {shapes or 'none'}: must have the shape (N, P), as in 'pooled'")
        if len({shape[0] for shape in shapes.values()}) > 1:
            raise ValueError(f"Features.tensors have different numbers of images: {shapes}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))


def rows(features: Features, role: Literal["samples", "reference"], name: str = "pooled", least: int = 2) -> Tensor:
    """Return the tensor (N, P) of that name.

    Raises ValueError: the features have the other role, no tensor of that name, NaN or infinite values, or fewer than
    `least` rows.
    """
    if not isinstance(features, Features):
        raise ValueError(f"the argument {role} must be Features, got {type(features).__name__}")
    if features.role != role:
        raise ValueError(
            f"the argument {role} got features of the {features.role}: samples and reference are swapped. Exchange "
            "them: precision, recall and Inception Score would otherwise measure the wrong set"
        )
    if name not in features.tensors:
        raise ValueError(f"{role}: no {name!r} features, only {', '.join(features.tensors)}")
    tensor = features.tensors[name]
    if len(tensor) < least:
        raise ValueError(f"{role}: only {len(tensor)} images, but this metric needs at least {least}")
    if not mean_of(tensor).isfinite().all():  # a sum is finite only if its terms are
        row, column = (~tensor.isfinite()).nonzero()[0].tolist()
        value = tensor[row, column].item()
        raise ValueError(f"{name!r} of the {role} holds {value} (image {row}, feature {column}): must be finite")
    return tensor


def mean_of(features: Tensor) -> Tensor:
    """Return the mean (P,) of features (N, P) in float64, computed in chunks."""
    return sum(part.sum(dim=0, dtype=torch.float64) for part in features.split(CHUNK)) / len(features)


def both(samples: Features, reference: Features, name: str = "pooled", least: int = 2) -> tuple[Tensor, Tensor]:
    """Return the tensors of that name, (N, P) and (M, P). Raises ValueError like `rows`, and for different widths."""
    ours, theirs = rows(samples, "samples", name, least), rows(reference, "reference", name, least)
    check_widths(ours.shape[1], theirs.shape[1])
    return ours, theirs


def check_widths(samples: int, reference: int) -> None:
    """Raise ValueError if the numbers of features differ."""
    if samples != reference:
        raise ValueError(f"samples have {samples} features, but the reference has {reference}: use one network")
