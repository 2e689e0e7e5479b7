"""What all linear reducers share: streaming moments, explicit scale, projection and its inverse."""

import logging
from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from redi.models.reducers import Reducer

log = logging.getLogger(__name__)


class Moments:
    """Count, mean and covariance of feature vectors, in float64, one pass, O(E^2) memory.

    Batches are merged by the update of Chan, Golub & LeVeque (1979), which does not cancel as E[x^2] - E[x]^2
    would; two objects merge the same way.
    """

    def __init__(self):
        self.count = 0
        self.mean: Tensor | float = 0.0  # (E,)
        self.scatter: Tensor | float = 0.0  # (E, E), sum of outer products of the centred vectors

    def add(self, features: Tensor) -> None:
        """Takes in features (N, E, h, w)."""
        rows = rearrange(features.detach().double(), "n e h w -> (n h w) e")
        mean = rows.mean(dim=0)
        if not mean.isfinite().all():
            raise ValueError("the encoder's features hold NaN or infinite values; a reducer cannot be fitted to them")
        centred = rows - mean
        batch = Moments()
        batch.count, batch.mean, batch.scatter = len(rows), mean, centred.T @ centred
        self.merge(batch)

    def merge(self, other: "Moments") -> None:
        """Takes in all that `other` has seen."""
        total = self.count + other.count
        if total:
            difference = other.mean - self.mean
            weight = self.count * other.count / total
            self.scatter = self.scatter + other.scatter + weight * torch.outer(difference, difference)
            self.mean = self.mean + difference * (other.count / total)
            self.count = total

    @property
    def covariance(self) -> Tensor:
        """(E, E), divided by count - 1."""
        return self.scatter / (self.count - 1)


class LinearReducer(Reducer):
    """reduced = scale * components (features - mean) / std.

    A component supplies the rows; everything else follows from the features' moments.

    Args:
        rank: R, the rows kept.
        scale: 'raw' leaves the projection as it is; 'unit_rms' divides it by one number so that the R channels
            have mean square 1 together, comparable to latents; 'whiten' divides every channel by its own
            standard deviation. The signal-to-noise ratio at each t follows from this. Measured on the encoder's
            grid: where the latent grid is finer, the bilinear resize smooths, and the mean square falls below 1.
        standardize: divide every feature by its own standard deviation first.
    """

    def __init__(
        self, *, rank: int = 8, scale: Literal["raw", "unit_rms", "whiten"] = "unit_rms", standardize: bool = False
    ):
        super().__init__(rank=rank)
        if scale not in ("raw", "unit_rms", "whiten"):
            raise ValueError(f"{type(self).__name__}.scale = {scale!r}: it is 'raw', 'unit_rms' or 'whiten'")
        self.scale = scale
        self.standardize = standardize
        for name in ("mean", "std", "components", "deviations", "explained"):
            self.register_buffer(name, torch.empty(0))
        self.register_load_state_dict_pre_hook(_take_shapes)
        self.register_load_state_dict_post_hook(_check_loaded)

    @abstractmethod
    def rows(self, covariance: Tensor) -> Tensor:
        """Covariance of the (standardised) features (E, E), float64 -> components (K, E), K >= rank."""

    @property
    def fitted(self) -> bool:
        return self.components.numel() > 0

    def fit(self, batches: Iterable[Tensor]) -> None:
        moments = Moments()
        for features in batches:
            if self.rank > features.shape[1]:
                width = features.shape[1]
                raise ValueError(f"{type(self).__name__}.rank = {self.rank} exceeds the encoder width {width}")
            moments.add(features)
        if moments.count <= self.rank:
            name = type(self).__name__
            raise ValueError(f"{name}.rank = {self.rank} needs more than the {moments.count} feature vectors given")
        self.solve(moments)
        log.info(
            "%s rank %d of %d: %.1f %% of the variance of %d feature vectors",
            type(self).__name__, self.rank, len(self.mean), 100 * self.explained_variance, moments.count,
        )  # fmt: skip

    def solve(self, moments: Moments) -> None:
        """Sets the buffers from moments of features."""
        covariance = moments.covariance
        variances = covariance.diagonal()
        if not variances.sum() > 0:
            raise ValueError("the encoder's features never vary: there is nothing to reduce")
        # A feature that never varies has nothing to standardise.
        std = variances.sqrt().where(variances > 0, 1.0) if self.standardize else torch.ones_like(variances)
        covariance = covariance / torch.outer(std, std)
        rows = self.rows(covariance)
        basis = torch.linalg.qr(rows.T).Q  # (E, K): its first k columns span the first k rows
        along = (basis * (covariance @ basis)).sum(dim=0)
        self.mean, self.std, self.components = moments.mean.float(), std.float(), rows.float()
        self.deviations = (rows * (rows @ covariance)).sum(dim=1).clamp(min=0).sqrt().float()
        self.explained = (along.cumsum(0) / covariance.trace()).float()
        self._check_scale()

    def _check_scale(self) -> None:
        kept = self.deviations[: self.rank]
        if self.scale == "whiten" and len(kept) and kept.min() <= 1e-6 * kept.max():
            weak = int((kept > 1e-6 * kept.max()).sum())
            raise ValueError(
                f"{type(self).__name__}.scale = 'whiten' would divide by zero: only {weak} of {self.rank} components "
                f"vary; lower {type(self).__name__}.rank or use scale = 'unit_rms'"
            )

    @property
    def factors(self) -> Tensor:
        """(R,) what each projected channel is multiplied with."""
        deviations = self.deviations[: self.rank]
        if self.scale == "raw":
            return torch.ones_like(deviations)
        if self.scale == "whiten":
            return 1 / deviations
        return (1 / deviations.square().mean().sqrt()).expand_as(deviations)

    @property
    def explained_variance(self) -> float:
        """The share of the (standardised) features' variance that lies in the span of the R rows."""
        return float(self.explained[self.rank - 1])

    def forward(self, features: Tensor) -> Tensor:
        self._require_fit()
        rows = self.components[: self.rank] * self.factors[:, None] / self.std  # (R, E)
        centred = features.float() - self.mean[:, None, None]
        return torch.einsum("re,nehw->nrhw", rows, centred)

    def inverse(self, reduced: Tensor) -> Tensor:
        self._require_fit()
        rows = self.components[: self.rank].double() * self.factors.double()[:, None]
        back = torch.linalg.pinv(rows).float()  # (E, R)
        features = torch.einsum("er,nrhw->nehw", back, reduced.float())
        return features * self.std[:, None, None] + self.mean[:, None, None]

    def _require_fit(self) -> None:
        if not self.fitted:
            raise ValueError(f"this {type(self).__name__} has not been fitted: call fit(batches) or prepare() first")
        if self.rank > len(self.components):
            raise ValueError(f"{type(self).__name__}.rank = {self.rank} exceeds the {len(self.components)} fitted rows")

    def fit_settings(self) -> dict:
        return {"reducer": type(self).__name__, "standardize": self.standardize}

    def provenance(self) -> dict:
        settings = self.fit_settings() | {"rank": self.rank, "scale": self.scale}
        return settings | ({"explained_variance": self.explained_variance} if self.fitted else {})


def _take_shapes(reducer: LinearReducer, state: dict, prefix: str, *_) -> None:
    """Before loading: buffers take the shapes of what is loaded, for the encoder width is only known then."""
    for name, buffer in list(reducer.named_buffers(recurse=False)):
        if (stored := state.get(prefix + name)) is not None:
            setattr(reducer, name, buffer.new_empty(stored.shape))


def _check_loaded(reducer: LinearReducer, _) -> None:
    """After loading: a fit is shared by all scales and ranks, and not every one of them can use it."""
    reducer._check_scale()
