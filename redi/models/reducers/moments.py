"""Count, mean and covariance of a stream of feature vectors."""

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

# Vectors turned to float64 at once: the memory beside a batch is 2 * 8 * E bytes for each, 100 MB at E = 768.
CHUNK = 8192


class Moments:
    """Count, mean and covariance of feature vectors, in float64, one pass, O(E^2) memory.

    Batches are merged by the update of Chan, Golub & LeVeque (1979), which does not cancel as E[x^2] - E[x]^2
    would; two objects merge the same way, so that several processes can each take a share of the images.

    The same batches in the same order give bit-equal moments, and so do the same shares merged in the same order,
    whether or not they were stored in between (`state`). Another division into batches or shares gives the same
    up to the rounding of float64.
    """

    def __init__(self):
        self.count = 0
        self.mean: Tensor | float = 0.0  # (E,)
        self.scatter: Tensor | float = 0.0  # (E, E), sum of outer products of the centred vectors
        self.batches = 0  # taken in by `add`, for messages

    def add(self, features: Tensor) -> None:
        """Takes in features (N, E, h, w). Raises ValueError where they are not finite or of another width."""
        images = max(1, CHUNK // max(1, features.shape[2] * features.shape[3]))
        for part in features.detach().split(images):
            rows = rearrange(part, "n e h w -> (n h w) e").double()
            mean = rows.mean(dim=0)
            if not mean.isfinite().all():
                require_finite(features, self.batches)
                raise ValueError(f"batch {self.batches}: the encoder's features are too large to be added up")
            centred = rows - mean
            chunk = Moments()
            chunk.count, chunk.mean, chunk.scatter = len(rows), mean, centred.T @ centred
            self.merge(chunk)
        self.batches += 1

    def merge(self, other: "Moments") -> None:
        """Takes in all that `other` has seen. Raises ValueError where its features are of another width."""
        total = self.count + other.count
        if self.count and other.count and len(self.mean) != len(other.mean):
            raise ValueError(f"features of width {len(other.mean)} cannot join moments of width {len(self.mean)}")
        if not self.count and other.count:
            self.mean, self.scatter = other.mean.clone(), other.scatter.clone()
        elif other.count:
            difference = other.mean - self.mean
            weight = self.count * other.count / total
            self.scatter.add_(other.scatter).addr_(difference, difference, alpha=weight)
            self.mean.add_(difference, alpha=other.count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """(E, E), divided by count - 1."""
        return self.scatter / (self.count - 1)

    def state(self) -> dict[str, Tensor]:
        """Everything, as float64 tensors: count (), mean (E,), scatter (E, E); E is 0 where nothing was seen."""
        count = torch.tensor(float(self.count), dtype=torch.float64)  # exact below 2^53
        if not self.count:
            return {"count": count, "mean": count.new_empty(0), "scatter": count.new_empty(0, 0)}
        return {"count": count, "mean": self.mean.clone(), "scatter": self.scatter.clone()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Moments":
        """The inverse of `state`, bit for bit. Raises ValueError where it is no such state."""
        if set(state) != {"count", "mean", "scatter"} or any(t.dtype != torch.float64 for t in state.values()):
            found = {name: str(tensor.dtype) for name, tensor in state.items()}
            raise ValueError(f"moments are count, mean and scatter in float64, got {found}")
        count, mean, scatter = state["count"], state["mean"], state["scatter"]
        whole = count.shape == () and count >= 0 and count == count.round()
        if not whole or mean.dim() != 1 or scatter.shape != (len(mean), len(mean)) or bool(len(mean)) != bool(count):
            shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
            raise ValueError(f"moments are a whole count (), a mean (E,) and a scatter (E, E), got {shapes}")
        if not (mean.isfinite().all() and scatter.isfinite().all()):
            raise ValueError("these moments hold NaN or infinite values")
        moments = cls()
        if count:
            moments.count, moments.mean, moments.scatter = int(count), mean.clone(), scatter.clone()
        return moments


def require_finite(features: Tensor, batch: int) -> None:
    """Raises ValueError naming the first value of features (N, E, h, w) that is not finite; `batch` counts from 0."""
    bad = (~features.isfinite()).nonzero()
    if len(bad):
        image, feature, row, column = bad[0].tolist()
        value = features[image, feature, row, column].item()
        raise ValueError(
            "the encoder's features hold NaN or infinite values; a reducer cannot be fitted to them: feature "
            f"{feature} is {value} in batch {batch}, image {image} of it, at ({row}, {column}) of its grid; "
            f"{len(bad)} such values in this batch"
        )
