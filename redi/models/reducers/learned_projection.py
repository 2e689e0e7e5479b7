"""A projection that is learned together with the diffusion model (CoReDi)."""

from typing import Any, Literal

import torch
from torch import Tensor

from redi.models.reducers import register
from redi.models.reducers.pca import PCA
from redi.models.reducers.trained_projection import NAMES, TrainedProjection, normalised, whitening
from redi.runtime.ranges import check_choice, check_number


@register
class LearnedProjection(PCA):
    """A linear projection with batch norm that trains with the network, from principal components on.

    CoReDi (arXiv 2604.17492), by the authors of ReDi, replaces ReDi's fixed PCA by a matrix P (E, R) that the diffusion
    loss trains. No code is published and only its idea is certain: the projection is linear, a batch norm without
    weights follows, the targets carry a stop-gradient, and regularisers prevent the collapse to features that are
    trivial to predict. All else here is our reading, and therefore an argument; the published weights of the terms are
    unknown.

    `fit` computes principal components; a cache stores the first S of them, and P (S, R) starts as the first R. Until
    training this is `PCA(scale='whiten')`. In training, the objective applies `trained_part`. Every checkpoint holds P,
    with averaged weights, and running statistics, so that all that follows sees a fitted reducer. A new run starts from
    the P that the reducer holds. The statistics are those of the S stored channels, from which mean and variance follow
    for every P, also an averaged one.

    Args:
        rank: R, the number of learned channels.
        store_rank: S, the number of principal components that P mixes and a cache stores, more than R. CoReDi's P sees
            all E features; most of these have little variance, and a cache of them is large. Default: 4 R, or E if
            that is less.
        standardize, path: see `LinearReducer`.
        image_gradient: whether the loss of the image trains P too, through the features that the network reads. True
            needs nothing further and trains P for the generated image; False takes a second forward pass, in which the
            other outputs (REPA's tokens, an inner prediction) stay with the image.
        ortho_weight: weight of the Ortho term `|P'P - I|^2` (Frobenius), which prevents equal columns.
        ortho_on: 'raw': of P. 'normalised': of its columns divided by their norms, which batch norm ignores anyway.
        cov_weight: weight of the Cov term `sum_(i != j) cov(z)_ij^2 / R`, as in VICReg (arXiv 2105.04906). The
            effective rank is R / (1 + this term).
        vf_weight: weight of the VF term.
        vf: 'similarity': the mean absolute difference between the cosine similarities of all pairs of positions of an
            image in z and in the stored features, after VA-VAE's VF loss (arXiv 2501.01423), whose name it shares: the
            default. 'variance': mean_j max(0, 1 - std_j / s), VICReg's variance floor, where std_j is that of channel j
            before batch norm, after which it is 1, and s that of the last of the first R principal components.
        momentum: share of a batch in the running statistics, as in torch's batch norm.
        speed: factor on the learning rate of P under Adam and AdamW.

    Examples:
        >>> features = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> learned, pca = LearnedProjection(rank=2), PCA(rank=2, scale="whiten")
        >>> learned.fit([features])
        >>> pca.fit([features])
        >>> torch.allclose(learned(features), pca(features), atol=1e-5), learned.project(features).shape[1]
        (True, 8)
    """

    projection: Tensor  # (S, R), P up to the factor `speed`; empty until training
    running_mean: Tensor  # (S,) of the principal components that a cache stores
    running_covariance: Tensor  # (S, S)
    trained_buffers = NAMES

    def __init__(
        self, rank: int = 8, *, store_rank: int | None = None, standardize: bool = False, path: str | None = None,
        image_gradient: bool = True, ortho_weight: float = 1.0, ortho_on: Literal["raw", "normalised"] = "raw",
        cov_weight: float = 1.0, vf_weight: float = 1.0, vf: Literal["similarity", "variance"] = "similarity",
        momentum: float = 0.1, speed: float = 1.0,
    ):  # fmt: skip
        self.adapts = store_rank is None  # to the encoder, in `check_width`
        store_rank = 4 * rank if store_rank is None else store_rank
        super().__init__(rank, scale="whiten", standardize=standardize, store_rank=store_rank)
        name = type(self).__name__
        self._check_choice()
        weights = {"ortho_weight": ortho_weight, "cov_weight": cov_weight, "vf_weight": vf_weight}
        for setting, weight in weights.items():
            check_number(f"{name}.{setting}", weight, least=0, whole=False)
        check_choice(f"{name}.ortho_on", ortho_on, ("raw", "normalised"))
        check_choice(f"{name}.vf", vf, ("similarity", "variance"))
        if not 0 < momentum <= 1:
            raise ValueError(f"{name}.momentum = {momentum}: must be in (0, 1]")
        if not 0 < speed < float("inf"):
            raise ValueError(f"{name}.speed = {speed}: must be finite and greater than 0")
        self.training_settings: dict[str, Any] = weights | {
            "image_gradient": image_gradient, "ortho_on": ortho_on, "vf": vf, "momentum": momentum, "speed": speed,
        }  # fmt: skip
        for buffer in NAMES:
            self.register_buffer(buffer, torch.empty(0))
        self.register_load_state_dict_pre_hook(_keep_trained)
        self.register_load_state_dict_post_hook(_check_trained)
        if path is not None:
            self.restore(path)

    def check_width(self, width: int) -> None:
        if self.adapts:
            self.store_rank = min(4 * self.rank, width)
        super().check_width(width)
        self._check_choice()

    def _check_choice(self) -> None:
        if self.store_rank <= self.rank:
            name, channels = type(self).__name__, f"{self.store_rank} stored channels (store_rank)"
            what = f"{name}.rank = {self.rank} with {channels}: must be smaller, so that there is a projection to learn"
            raise ValueError(f"{what}; lower {name}.rank, raise {name}.store_rank, or bind @reducers.PCA()")

    def _forget(self) -> None:
        super()._forget()
        for name in NAMES:
            setattr(self, name, self.origin.new_empty(0, dtype=torch.float32))

    def trained_part(self) -> TrainedProjection:
        units = self._units[: self.store_rank] if self.fitted else torch.ones(self.store_rank)
        part = TrainedProjection(units, self.rank, name=type(self).__name__, **self.training_settings)
        start = torch.eye(self.store_rank, self.rank) / part.speed, torch.zeros(self.store_rank), torch.eye(len(units))
        if self.fitted:
            variances = self.deviations[: self.store_rank].square()
            start = start[0], start[1], variances.diag()
            part.floor.copy_(self.deviations[self.rank - 1])
        with torch.no_grad():
            for name, value in zip(NAMES, start, strict=True):
                trained = getattr(self, name)
                getattr(part, name).copy_(trained if trained.numel() else value)
        return part

    def finish(self, stored: Tensor) -> Tensor:
        if not self.projection.numel():
            return super().finish(stored)
        self.require_fit()
        channels = stored.float() * self._units[: self.store_rank, None, None]
        return normalised(channels, self.projection, self.running_mean, self.running_covariance)

    def untrained(self, stored: Tensor) -> Tensor | None:
        return super().finish(stored) if self.projection.numel() else None

    def inverse(self, reduced: Tensor) -> Tensor:
        """Return the linear regression of the features on the channels, which for PCA is the pseudoinverse."""
        if not self.projection.numel():
            return super().inverse(reduced)
        weights = whitening(self.projection, self.running_covariance).double()  # (S, R)
        covariance = self.deviations[: self.store_rank].double().square().diag()  # of the fit
        back = covariance @ weights @ torch.linalg.inv(weights.T @ covariance @ weights)  # (S, R)
        offset = self.running_mean.double() @ weights
        channels = torch.einsum("sr,nrhw->nshw", back, reduced.double() + offset[:, None, None])
        features = torch.einsum("se,nshw->nehw", self.components[: self.store_rank].double(), channels).float()
        return features * self.std[:, None, None] + self.mean[:, None, None]

    def provenance(self) -> dict:
        if not self.projection.numel():
            return super().provenance()
        # The share of the variance would be that of the start, and depend on rounding if it were computed.
        return {name: value for name, value in super().provenance().items() if name != "explained_variance"}


def _keep_trained(reducer: LearnedProjection, state: dict, prefix: str, *_) -> None:
    """Keep what training changes if the state, that of a cache, lacks it."""
    for name in NAMES:
        state.setdefault(prefix + name, getattr(reducer, name))


def _check_trained(reducer: LearnedProjection, _) -> None:
    shape = tuple(reducer.projection.shape)
    if reducer.projection.numel() and shape != (reducer.store_rank, reducer.rank):
        name = type(reducer).__name__
        what = f"the stored projection mixes {shape[0]} channels into {shape[1]}"
        raise ValueError(f"{what}: set {name}.store_rank = {shape[0]} and {name}.rank = {shape[1]}")
