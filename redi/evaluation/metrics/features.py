"""Features of images, which know whether they are of samples or of the reference."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ROLES = ("samples", "reference")
CHUNK = 4096  # rows turned to float64 at once


@dataclass
class Features:
    """What a network makes of a set of images, a row for each.

    Metrics with a direction (precision, recall, Inception Score) answer another question when the two sets change
    places, without a sign of it in the number; so a set says what it is, and a metric refuses the other one.

    Attributes:
        tensors: "pooled" (N, P) float32 and whatever else `Encoder.metric_features` gives, on the CPU.
    """

    role: Literal["samples", "reference"]
    tensors: dict[str, Tensor]

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"Features.role = {self.role!r}: it is 'samples' or 'reference'")
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if not shapes or any(len(shape) != 2 for shape in shapes.values()):
            raise ValueError(f"features are (N, P) under names such as 'pooled', got {shapes or 'none'}")
        if len({shape[0] for shape in shapes.values()}) > 1:
            raise ValueError(f"features of different numbers of images: {shapes}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))


def rows(features: Features, role: Literal["samples", "reference"], name: str = "pooled", least: int = 2) -> Tensor:
    """The tensor (N, P) of that name. Raises ValueError for features of the other role, none of that name, NaN or
    infinite values, or fewer rows than `least`.
    """
    if not isinstance(features, Features):
        raise ValueError(f"{role}= takes Features, got {type(features).__name__}")
    if features.role != role:
        raise ValueError(
            f"{role}= was given features of the {features.role}: samples and reference are swapped, and precision, "
            "recall and Inception Score would silently be those of the other set"
        )
    if name not in features.tensors:
        raise ValueError(f"the {role} have no {name!r} features, only {', '.join(features.tensors)}")
    tensor = features.tensors[name]
    if len(tensor) < least:
        raise ValueError(f"the {role} hold {len(tensor)} images; this metric needs at least {least}")
    if not mean_of(tensor).isfinite().all():  # terms of a finite sum are finite
        row, column = (~tensor.isfinite()).nonzero()[0].tolist()
        value = tensor[row, column].item()
        raise ValueError(f"{name!r} of the {role} holds {value} (image {row}, feature {column}): no metric is defined")
    return tensor


def mean_of(features: Tensor) -> Tensor:
    """(N, P) -> (P,) in float64, without a copy of all of them in that."""
    return sum(part.sum(dim=0, dtype=torch.float64) for part in features.split(CHUNK)) / len(features)


def both(samples: Features, reference: Features, name: str = "pooled", least: int = 2) -> tuple[Tensor, Tensor]:
    """The tensors of that name, (N, P) and (M, P). Raises ValueError as `rows` does, and for different widths."""
    ours, theirs = rows(samples, "samples", name, least), rows(reference, "reference", name, least)
    check_widths(ours.shape[1], theirs.shape[1])
    return ours, theirs


def check_widths(samples: int, reference: int) -> None:
    """Raises ValueError where these numbers of features differ."""
    if samples != reference:
        raise ValueError(f"samples of {samples} features against a reference of {reference}: other networks?")
