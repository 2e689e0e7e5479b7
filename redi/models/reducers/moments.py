"""Running count, mean and covariance of feature vectors."""

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

# Values converted to float64 at once (16 MB), and rows per block of products. Larger ones were not faster on a CPU.
CHUNK = 2**21
BLOCK = 192


class Moments:
    """Count, mean and covariance of feature vectors: float64, one pass, O(E^2) memory, on the features' device.

    Batches, and the moments of several processes, are merged by the update of Chan, Golub & LeVeque (1979). The same
    batches in the same order give bit-equal moments; another order changes the rounding.

    Examples:
        >>> features = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> moments = Moments()
        >>> for batch in features.split(2):
        ...     moments.add(batch)
        >>> torch.allclose(moments.covariance, features.double().transpose(0, 1).flatten(1).cov())
        True
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.empty(0, dtype=torch.float64)  # (E,)
        self.upper = torch.empty(0, 0, dtype=torch.float64)  # (E, E), the scatter in the upper triangle
        self.batches = 0  # batches passed to `add`, for error messages

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Add features (N, E, h, w). On a GPU this does not wait for the device.

        Raises ValueError if the width differs or a value is not finite (on a GPU, only when the moments are read).
        """
        num_images, width, height, columns = features.shape
        self._require_width(width)
        at_once = max(1, CHUNK // max(1, width * height * columns))
        buffer = features.new_empty(width * min(at_once, num_images) * height * columns, dtype=torch.float64)
        for part in features.split(at_once):
            # One row per feature keeps the values of an image contiguous.
            rows = buffer[: part.numel()].view(width, len(part), height, columns)
            rows = rearrange(rows.copy_(part.transpose(0, 1)), "e n h w -> e (n h w)")
            mean = rows.mean(dim=1)
            if not features.is_cuda and not mean.isfinite().all():
                require_finite(features, self.batches)
                raise ValueError(f"batch {self.batches}: the features are too large: their sum overflows float64")
            if not self.count:
                self.mean, self.upper = torch.zeros_like(mean), mean.new_zeros(width, width)
            _add_products(rows.sub_(mean[:, None]), self.upper)
            self._add_mean(mean, rows.shape[1])
        self.batches += 1

    def merge(self, other: "Moments") -> None:
        """Add the moments of other feature vectors. Raises ValueError if their width differs."""
        if not other.count:
            return
        self._require_width(len(other.mean))
        if not self.count:
            self.count, self.mean, self.upper = other.count, other.mean.clone(), other.upper.clone()
            return
        self.upper.add_(other.upper.to(self.upper.device))
        self._add_mean(other.mean.to(self.mean.device), other.count)

    def _add_mean(self, mean: Tensor, count: int) -> None:
        """Update count, mean and the mean's share of the scatter for `count` more vectors with this mean (E,)."""
        difference, total = mean - self.mean, self.count + count
        self.upper.addr_(difference, difference, alpha=self.count * count / total)
        self.mean.add_(difference, alpha=count / total)
        self.count = total

    def _require_width(self, width: int) -> None:
        if self.count and len(self.mean) != width:
            raise ValueError(f"features of width {width}: must have the width {len(self.mean)} of the moments so far")

    @property
    def scatter(self) -> Tensor:
        """(E, E) sum of outer products of the centred vectors. Raises ValueError if it is not finite."""
        scatter = self.upper.triu() + self.upper.triu(diagonal=1).T
        if not scatter.isfinite().all():
            raise ValueError("the features contain NaN or infinite values: check the weights of the encoder")
        return scatter

    @property
    def covariance(self) -> Tensor:
        """(E, E) scatter divided by count - 1. Raises ValueError if it is not finite."""
        return self.scatter / (self.count - 1)

    def state(self) -> dict[str, Tensor]:
        """Return float64 tensors count (), mean (E,) and scatter (E, E); E is 0 if nothing was added."""
        count = torch.tensor(float(self.count), dtype=torch.float64)  # exact below 2^53
        if not self.count:
            return {"count": count, "mean": count.new_empty(0), "scatter": count.new_empty(0, 0)}
        return {"count": count, "mean": self.mean.clone(), "scatter": self.scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Moments":
        """Restore the moments that `state` returned, bit for bit. Raises ValueError if the tensors do not match."""
        if set(state) != {"count", "mean", "scatter"} or any(t.dtype != torch.float64 for t in state.values()):
            dtypes = {name: str(tensor.dtype) for name, tensor in state.items()}
            raise ValueError(f"moments need count, mean and scatter in float64, but got {dtypes}")
        count, mean, scatter = state["count"], state["mean"], state["scatter"]
        whole = count.shape == () and count >= 0 and count == count.round()
        if not whole or mean.dim() != 1 or scatter.shape != (len(mean), len(mean)) or bool(len(mean)) != bool(count):
            shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
            raise ValueError(f"moments need an integer count (), a mean (E,) and a scatter (E, E), but got {shapes}")
        if not (mean.isfinite().all() and scatter.isfinite().all()):
            raise ValueError("the moments contain NaN or infinite values")
        moments = cls()
        if count:
            moments.count, moments.mean, moments.upper = int(count), mean.clone(), scatter.clone()
        return moments


def _add_products(rows: Tensor, upper: Tensor) -> None:
    """Add rows @ rows.T to the upper triangle of `upper` (E, E), for rows (E, K).

    Skipping the blocks below the diagonal saves a third of the work or more when E spans several blocks.
    """
    for start in range(0, len(rows), BLOCK):
        upper[start : start + BLOCK, start:].addmm_(rows[start : start + BLOCK], rows[start:].T)


def require_finite(features: Tensor, batch: int) -> None:
    """Raise ValueError if features (N, E, h, w) are not finite, with the first such value. `batch` counts from 0."""
    bad = (~features.isfinite()).nonzero()
    if len(bad):
        image, feature, row, column = bad[0].tolist()
        value = features[image, feature, row, column].item()
        raise ValueError(
            f"the features contain NaN or infinite values: feature {feature} is {value} in batch {batch}, image "
            f"{image}, at ({row}, {column}) of the grid; this batch has {len(bad)} such values"
        )
