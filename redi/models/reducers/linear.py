"""What all linear reducers share: a fit from moments, explicit scale, projection and its inverse."""

import logging
from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from redi.models.reducers import Reducer
from redi.models.reducers.moments import Moments

log = logging.getLogger(__name__)
BUFFERS = ("mean", "std", "components", "deviations", "explained")


class LinearReducer(Reducer):
    """reduced = scale * components (features - mean) / std. Subclasses supply the rows.

    Args:
        rank: R, the rows used.
        scale: 'raw' leaves the projection as it is; 'unit_rms' divides it by one number so that the R channels
            have mean square 1 together, comparable to latents; 'whiten' divides every channel by its own
            standard deviation. Measured on the encoder's grid: resizing to a finer latent grid smooths.
        standardize: divide every feature by its own standard deviation first.
        store_rank: S, the channels that a cache stores; ranks up to it need no new encoding. Default: the rank.
        path: what `save` wrote, to use instead of a new fit. Raises ValueError where it does not fit the settings.
    """

    def __init__(
        self,
        rank: int = 8,
        *,
        scale: Literal["raw", "unit_rms", "whiten"] = "unit_rms",
        standardize: bool = False,
        store_rank: int | None = None,
        path: str | None = None,
    ):
        super().__init__(rank=rank)
        if store_rank is not None and store_rank < rank:
            name = type(self).__name__
            raise ValueError(f"{name}.store_rank = {store_rank} is less than {name}.rank = {rank}")
        self.store_rank = rank if store_rank is None else store_rank
        if scale not in ("raw", "unit_rms", "whiten"):
            raise ValueError(f"{type(self).__name__}.scale = {scale!r}: it is 'raw', 'unit_rms' or 'whiten'")
        self.scale, self.standardize = scale, standardize
        for name in BUFFERS:
            self.register_buffer(name, torch.empty(0))
        self.register_load_state_dict_post_hook(_check_loaded)
        if path is not None:
            self.restore(path)

    @abstractmethod
    def rows(self, covariance: Tensor) -> Tensor:
        """Covariance of the (standardised) features (E, E), float64 -> components (K, E), K >= rank."""

    @property
    def fitted(self) -> bool:
        return self.components.numel() > 0

    @property
    def width(self) -> int | None:
        return len(self.mean) if self.fitted else None

    def fit(self, batches: Iterable[Tensor]) -> None:
        self._forget()
        moments = Moments()
        for features in batches:
            self.check_width(features.shape[1])
            moments.add(features)
        self.solve(moments)

    def solve(self, moments: Moments) -> None:
        """Fit to the moments of features. Raises ValueError for too few vectors, features that never vary, or a scale
        that would divide by zero.
        """
        self._forget()
        name = type(self).__name__
        if moments.count <= self.rank:
            raise ValueError(f"{name}.rank = {self.rank} needs more than the {moments.count} feature vectors given")
        self.check_width(len(moments.mean))
        covariance = moments.covariance
        variances = covariance.diagonal()
        # A feature that varies by less than the rounding of float32 is constant; it must not be standardised.
        varies = variances > (torch.finfo(torch.float32).eps * moments.mean).square()
        if not varies.any():
            raise ValueError("the encoder's features never vary: there is nothing to reduce")
        std = variances.sqrt().where(varies, 1.0) if self.standardize else torch.ones_like(variances)
        covariance = covariance / torch.outer(std, std)
        rows = self.rows(covariance)
        basis = torch.linalg.qr(rows.T).Q  # (E, K): its first k columns span the first k rows
        along = (basis * (covariance @ basis)).sum(dim=0)
        self.mean, self.std, self.components = moments.mean.float(), std.float(), rows.float()
        self.deviations = (rows * (rows @ covariance)).sum(dim=1).clamp(min=0).sqrt().float()
        self.explained = (along.cumsum(0) / covariance.trace()).float()
        self._check_scale()
        log.info(
            "%s rank %d of %d: %.1f %% of the variance of %d feature vectors",
            name, self.rank, len(self.mean), 100 * self.explained_variance, moments.count,
        )  # fmt: skip

    def _forget(self) -> None:
        self.forget_fit()
        self.components = self.components.new_empty(0)

    def _check_scale(self) -> None:
        kept, name = self.deviations[: self.rank], type(self).__name__
        if not len(kept) or self.scale == "raw":
            return
        if not kept.max() > 0:
            raise ValueError(f"{name}.scale = {self.scale!r} would divide by zero: no component of {self.rank} varies")
        if self.scale == "whiten" and kept.min() <= 1e-6 * kept.max():
            weak = int((kept > 1e-6 * kept.max()).sum())
            raise ValueError(
                f"{name}.scale = 'whiten' would divide by zero: only {weak} of {self.rank} components vary; "
                f"lower {name}.rank or use scale = 'unit_rms'"
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

    def project(self, features: Tensor) -> Tensor:
        self.require_fit()
        self.check_width(features.shape[1])
        rows = self.components[: self.store_rank] / self._units[: self.store_rank, None] / self.std  # (S, E)
        centred = features.float() - self.mean[:, None, None]
        return torch.einsum("se,nehw->nshw", rows, centred)

    def finish(self, stored: Tensor) -> Tensor:
        self.require_fit()
        factors = self.factors * self._units[: self.rank]
        return stored.float()[:, : self.rank] * factors[:, None, None]

    @property
    def _units(self) -> Tensor:
        """(K,) the units of stored channels, for float16's range: the power of two below a channel's own deviation, at
        least 2^-10 of the strongest, because channels that are weak in the fit may not be so in other images.
        """
        strongest = self.deviations.max()
        floor = torch.where(strongest > 0, strongest * 2**-9, 1.0)
        mantissa, exponent = torch.frexp(self.deviations.maximum(floor))  # mantissa in [0.5, 1)
        return torch.ldexp(torch.ones_like(mantissa), exponent - 1)

    def inverse(self, reduced: Tensor) -> Tensor:
        self.require_fit()
        rows = self.components[: self.rank].double() * self.factors.double()[:, None]
        back = torch.linalg.pinv(rows).float()  # (E, R)
        features = torch.einsum("er,nrhw->nehw", back, reduced.float())
        return features * self.std[:, None, None] + self.mean[:, None, None]

    def require_fit(self) -> None:
        super().require_fit()
        for setting, rank in (("rank", self.rank), ("store_rank", self.store_rank)):
            if rank > (rows := len(self.components)):
                raise ValueError(f"{type(self).__name__}.{setting} = {rank} exceeds the {rows} fitted rows")

    def fit_settings(self) -> dict:
        return {"reducer": type(self).__name__, "standardize": self.standardize}

    def provenance(self) -> dict:
        settings = self.fit_settings() | {"rank": self.rank, "scale": self.scale}
        settings |= {"explained_variance": self.explained_variance} if self.fitted else {}
        return settings | ({"fitted_on": self.fitted_on} if self.fitted_on else {})

    def stored_provenance(self) -> dict:
        settings = self.fit_settings() | {"store_rank": self.store_rank}
        return settings | ({"fitted_on": self.fitted_on} if self.fitted_on else {})

    def report(self) -> dict:
        """Of all K rows: standard deviation, and the share of the variance that each adds to those before it."""
        shares = self.explained.diff(prepend=self.explained.new_zeros(1))
        settings = {"scale": self.scale, "standardize": self.standardize, "store_rank": self.store_rank}
        return settings | {"deviations": self.deviations.tolist(), "explained_variance_ratio": shares.tolist()}

    def check_width(self, width: int) -> None:
        super().check_width(width)
        if self.store_rank > width:
            name = type(self).__name__
            raise ValueError(f"{name}.store_rank = {self.store_rank} exceeds the encoder width {width}")


def _check_loaded(reducer: LinearReducer, _) -> None:
    """After loading, because a fit is shared by all scales and ranks, and some cannot use it."""
    shapes = {name: tuple(getattr(reducer, name).shape) for name in BUFFERS}
    rows, width = len(reducer.deviations), len(reducer.mean)
    expected = {"mean": (width,), "std": (width,), "deviations": (rows,), "explained": (rows,)}
    if reducer.fitted and shapes != expected | {"components": (rows, width)}:
        raise ValueError(f"the stored {type(reducer).__name__} holds tensors that do not belong together: {shapes}")
    if reducer.fitted:
        reducer.require_fit()
    reducer._check_scale()
