"""Count, mean and covariance of a stream of feature vectors."""

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

CHUNK = 2**21  # values turned to float64 at once: 16 MB; larger chunks and other blocks were not faster on a CPU
BLOCK = 192


class Moments:
    """Count, mean and covariance of feature vectors, in float64, one pass, O(E^2) memory, on the features' device.

    Batches, and the moments of several processes, are merged by the update of Chan, Golub & LeVeque (1979). The same
    batches and shares in the same order give bit-equal moments; others give the same up to the rounding of float64.
    """

    def __init__(self):
        self.count = 0
        self.mean: Tensor | float = 0.0  # (E,)
        self.upper: Tensor | float = 0.0  # (E, E), of which the upper triangle is that of `scatter`
        self.batches = 0  # taken in by `add`, for messages

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Add features (N, E, h, w), on a GPU without waiting for it. Raises ValueError where they are of another width
        or not finite (on a GPU only when the moments are read).
        """
        num_images, width, height, columns = features.shape
        self._require_width(width)
        at_once = max(1, CHUNK // max(1, width * height * columns))
        buffer = features.new_empty(width * min(at_once, num_images) * height * columns, dtype=torch.float64)
        for part in features.split(at_once):
            # One row per feature, for so an image's values stay together.
            rows = buffer[: part.numel()].view(width, len(part), height, columns)
            rows = rearrange(rows.copy_(part.transpose(0, 1)), "e n h w -> e (n h w)")
            mean = rows.mean(dim=1)
            if not features.is_cuda and not mean.isfinite().all():
                require_finite(features, self.batches)
                raise ValueError(f"batch {self.batches}: the features are too large to be added up")
            if not self.count:
                self.mean, self.upper = torch.zeros_like(mean), mean.new_zeros(width, width)
            _add_products(rows.sub_(mean[:, None]), self.upper)
            self._add_mean(mean, rows.shape[1])
        self.batches += 1

    def merge(self, other: "Moments") -> None:
        """Add those of `other`. Raises ValueError where its features are of another width."""
        if not other.count:
            return
        self._require_width(len(other.mean))
        if not self.count:
            self.count, self.mean, self.upper = other.count, other.mean.clone(), other.upper.clone()
            return
        self.upper.add_(other.upper.to(self.upper.device))
        self._add_mean(other.mean.to(self.mean.device), other.count)

    def _add_mean(self, mean: Tensor, count: int) -> None:
        """The share of the means in a merge with `count` vectors of this mean (E,)."""
        difference, total = mean - self.mean, self.count + count
        self.upper.addr_(difference, difference, alpha=self.count * count / total)
        self.mean.add_(difference, alpha=count / total)
        self.count = total

    def _require_width(self, width: int) -> None:
        if self.count and len(self.mean) != width:
            raise ValueError(f"features of width {width} cannot join moments of width {len(self.mean)}")

    @property
    def scatter(self) -> Tensor:
        """(E, E), sum of outer products of the centred vectors. Raises ValueError where they are not finite."""
        scatter = self.upper.triu() + self.upper.triu(diagonal=1).T
        if not scatter.isfinite().all():
            raise ValueError("the features hold NaN or infinite values")
        return scatter

    @property
    def covariance(self) -> Tensor:
        """(E, E), divided by count - 1. Raises ValueError as `scatter` does."""
        return self.scatter / (self.count - 1)

    def state(self) -> dict[str, Tensor]:
        """As float64 tensors: count (), mean (E,), scatter (E, E); E is 0 where nothing was added."""
        count = torch.tensor(float(self.count), dtype=torch.float64)  # exact below 2^53
        if not self.count:
            return {"count": count, "mean": count.new_empty(0), "scatter": count.new_empty(0, 0)}
        return {"count": count, "mean": self.mean.clone(), "scatter": self.scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Moments":
        """The inverse of `state`, bit for bit. Raises ValueError where it is no such state."""
        if set(state) != {"count", "mean", "scatter"} or any(t.dtype != torch.float64 for t in state.values()):
            dtypes = {name: str(tensor.dtype) for name, tensor in state.items()}
            raise ValueError(f"moments are count, mean and scatter in float64, got {dtypes}")
        count, mean, scatter = state["count"], state["mean"], state["scatter"]
        whole = count.shape == () and count >= 0 and count == count.round()
        if not whole or mean.dim() != 1 or scatter.shape != (len(mean), len(mean)) or bool(len(mean)) != bool(count):
            shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
            raise ValueError(f"moments are a whole count (), a mean (E,) and a scatter (E, E), got {shapes}")
        if not (mean.isfinite().all() and scatter.isfinite().all()):
            raise ValueError("these moments hold NaN or infinite values")
        moments = cls()
        if count:
            moments.count, moments.mean, moments.upper = int(count), mean.clone(), scatter.clone()
        return moments


def _add_products(rows: Tensor, upper: Tensor) -> None:
    """Adds rows @ rows.T to the upper triangle of `upper` (E, E), for rows (E, K): blocks below the diagonal are left
    out, which saves a third of the work or more where E is several blocks.
    """
    for start in range(0, len(rows), BLOCK):
        upper[start : start + BLOCK, start:].addmm_(rows[start : start + BLOCK], rows[start:].T)


def require_finite(features: Tensor, batch: int) -> None:
    """Raises ValueError naming the first value of features (N, E, h, w) that is not finite; `batch` counts from 0."""
    bad = (~features.isfinite()).nonzero()
    if len(bad):
        image, feature, row, column = bad[0].tolist()
        value = features[image, feature, row, column].item()
        raise ValueError(
            f"the features hold NaN or infinite values: feature {feature} is {value} in batch {batch}, image {image} "
            f"of it, at ({row}, {column}) of its grid; {len(bad)} such values in this batch"
        )
