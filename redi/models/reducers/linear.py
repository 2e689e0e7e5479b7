"""The base class of linear reducers: fit from moments, scale, projection and inverse."""

import logging
from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from redi.models.reducers import Reducer
from redi.models.reducers.moments import Moments
from redi.runtime.ranges import check_choice

log = logging.getLogger(__name__)
BUFFERS = ("mean", "std", "components", "deviations", "explained")


class LinearReducer(Reducer):
    """Linear projection: reduced = scale * components (features - mean) / std. Subclasses provide the components.

    Args:
        rank: R, the number of components used.
        scale: 'raw' does not scale the projection; 'unit_rms' divides it by one number so that the mean square over
            all R channels is 1, comparable to latents; 'whiten' divides every channel by its own standard
            deviation. Both refer to the encoder's grid; resizing to a finer latent grid lowers the deviations a little.
        standardize: divide every feature by its standard deviation first.
        store_rank: S, the number of channels that a cache stores. The cache serves every rank up to S. Default: rank.
        path: folder of a fit written by `save`, loaded instead of fitting. Its settings must match.

    Examples:
        >>> class FirstFeatures(LinearReducer):  # keeps the first R features
        ...     def rows(self, covariance): return torch.eye(len(covariance)).to(covariance)
        >>> features = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> reducer = FirstFeatures(rank=2, scale="raw")
        >>> reducer.fit([features])
        >>> torch.allclose(reducer(features), (features - features.mean(dim=(0, 2, 3), keepdim=True))[:, :2])
        True
    """

    mean: Tensor  # (E,)
    std: Tensor  # (E,)
    components: Tensor  # (K, E)
    deviations: Tensor  # (K,) standard deviation of every component
    explained: Tensor  # (K,) share of the variance in the span of the first k components

    def __init__(
        self, rank: int = 8, *, scale: Literal["raw", "unit_rms", "whiten"] = "unit_rms", standardize: bool = False,
        store_rank: int | None = None, path: str | None = None,
    ):  # fmt: skip
        super().__init__(rank=rank)
        name = type(self).__name__
        if store_rank is not None and store_rank < rank:
            raise ValueError(f"{name}.store_rank = {store_rank}: must be at least {name}.rank = {rank}")
        self.store_rank = rank if store_rank is None else store_rank
        check_choice(f"{name}.scale", scale, ("raw", "unit_rms", "whiten"))
        self.scale, self.standardize = scale, standardize
        for buffer in BUFFERS:
            self.register_buffer(buffer, torch.empty(0))
        self.register_load_state_dict_post_hook(_check_loaded)
        if path is not None:
            self.restore(path)

    @abstractmethod
    def rows(self, covariance: Tensor) -> Tensor:
        """Return K >= rank components (K, E) from the covariance of the (standardised) features (E, E), float64."""

    @property
    def fitted(self) -> bool:
        return self.components.numel() > 0

    @property
    def width(self) -> int | None:  # type: ignore[override]  # a plug-in may set the attribute
        """E of the features of the fit; None before a fit."""
        return len(self.mean) if self.fitted else None

    def fit(self, batches: Iterable[Tensor]) -> None:
        self._forget()
        moments = Moments()
        for features in batches:
            self.check_width(features.shape[1])
            moments.add(features)
        self.solve(moments)

    def solve(self, moments: Moments) -> None:
        """Fit to the moments of features.

        Raises ValueError for too few feature vectors, constant features, or a scale that would divide by zero.
        """
        self._forget()
        name = type(self).__name__
        if moments.count <= self.rank:
            needs = f"needs more than {self.rank} feature vectors, but got {moments.count}"
            raise ValueError(f"{name}.rank = {self.rank} {needs}: fit to more images or lower {name}.rank")
        self.check_width(len(moments.mean))
        covariance = moments.covariance
        variances = covariance.diagonal()
        # A feature that varies by less than the rounding of float32 counts as constant and is not standardised.
        varies = variances > (torch.finfo(torch.float32).eps * moments.mean).square()
        if not varies.any():
            raise ValueError(f"{name} cannot be fitted because all features are constant: check encoder and images")
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
            "%s rank %d of %d explains %.1f %% of the variance of %d feature vectors",
            name, self.rank, len(self.mean), 100 * self.explained_variance, moments.count,
        )  # fmt: skip

    def _forget(self) -> None:
        self.forget_fit()
        self.components = self.components.new_empty(0)

    def _check_scale(self) -> None:
        stds, name = self.deviations[: self.rank], type(self).__name__
        if not len(stds) or self.scale == "raw":
            return
        if not stds.max() > 0:
            what = f"{name}.scale = {self.scale!r} would divide by zero: none of the {self.rank} components varies"
            raise ValueError(f"{what}; set {name}.scale = 'raw'")
        if self.scale == "whiten" and stds.min() <= 1e-6 * stds.max():
            varying = int((stds > 1e-6 * stds.max()).sum())
            what = f"{name}.scale = 'whiten' would divide by zero: only {varying} of {self.rank} components vary"
            raise ValueError(f"{what}; lower {name}.rank or set {name}.scale = 'unit_rms'")

    @property
    def factors(self) -> Tensor:
        """(R,) factors that `scale` multiplies the projected channels by."""
        stds = self.deviations[: self.rank]
        if self.scale == "raw":
            return torch.ones_like(stds)
        if self.scale == "whiten":
            return 1 / stds
        return (1 / stds.square().mean().sqrt()).expand_as(stds)

    @property
    def explained_variance(self) -> float:
        """Share of the variance of the (standardised) features in the span of the R components, in [0, 1]."""
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
        """(K,) powers of two that divide the stored channels, so that these fit the range of float16.

        Each is the largest one below the channel's standard deviation, but at least 2^-10 of the largest deviation,
        because a channel that is weak in the fit can be strong in other images.
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
                raise ValueError(f"{type(self).__name__}.{setting} = {rank} exceeds the {rows} fitted components")

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
        """Return the settings, and for all K components the standard deviation and the share of the variance."""
        shares = self.explained.diff(prepend=self.explained.new_zeros(1))
        settings = {"scale": self.scale, "standardize": self.standardize, "store_rank": self.store_rank}
        return settings | {"deviations": self.deviations.tolist(), "explained_variance_ratio": shares.tolist()}

    def check_width(self, width: int) -> None:
        super().check_width(width)
        if self.store_rank > width:
            name = type(self).__name__
            raise ValueError(f"{name}.store_rank = {self.store_rank} exceeds the encoder width {width}")


def _check_loaded(reducer: LinearReducer, _) -> None:
    """Check that a loaded fit is consistent and supports the configured rank and scale, which it does not store."""
    shapes = {name: tuple(getattr(reducer, name).shape) for name in BUFFERS}
    rows, width = len(reducer.deviations), len(reducer.mean)
    expected = {"mean": (width,), "std": (width,), "deviations": (rows,), "explained": (rows,)}
    if reducer.fitted and shapes != expected | {"components": (rows, width)}:
        raise ValueError(f"the stored {type(reducer).__name__} has tensors of inconsistent shapes {shapes}: fit again")
    if reducer.fitted:
        reducer.require_fit()
    reducer._check_scale()
