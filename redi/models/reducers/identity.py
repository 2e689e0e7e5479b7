"""A reducer that keeps all features."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from redi.models.reducers import register
from redi.models.reducers.linear import LinearReducer


@register
class Identity(LinearReducer):
    """Keep every feature, centred and scaled. The rank must equal the encoder width.

    Args:
        rank, scale, standardize, path: see `LinearReducer`.
        centred: subtract the mean. False: the features as they are, without a fit, as REG models the class token.

    Examples:
        >>> features = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> identity = Identity(rank=16, scale="raw")
        >>> identity.fit([features])
        >>> torch.allclose(identity.inverse(identity(features)), features, atol=1e-5)
        True
        >>> torch.equal(Identity(rank=16, scale="raw", centred=False)(features), features)
        True
    """

    def __init__(
        self, rank: int = 768, *, scale: Literal["raw", "unit_rms", "whiten"] = "unit_rms", standardize: bool = False,
        path: str | None = None, centred: bool = True,
    ):  # fmt: skip
        self.centred = centred
        if not centred and (scale != "raw" or standardize or path is not None):
            given = f"Identity.scale = {scale!r}, standardize = {standardize}, path = {path!r}"
            raise ValueError(f"{given} with Identity.centred = False: must be 'raw', False and None")
        super().__init__(rank=rank, scale=scale, standardize=standardize, path=path)
        if not centred:
            self.mean, self.std, self.components = torch.zeros(rank), torch.ones(rank), torch.eye(rank)
            self.deviations, self.explained = torch.ones(rank), torch.arange(1, rank + 1) / rank

    @property
    def width(self) -> int | None:  # type: ignore[override]
        return super().width if self.centred else None

    def fit(self, batches: Iterable[Tensor]) -> None:
        if self.centred:
            super().fit(batches)

    def fit_settings(self) -> dict:
        return super().fit_settings() | ({} if self.centred else {"centred": False})

    def rows(self, covariance: Tensor) -> Tensor:
        return torch.eye(len(covariance)).to(covariance)

    def check_width(self, width: int) -> None:
        super().check_width(width)
        if self.rank != width:
            raise ValueError(f"Identity.rank = {self.rank}: must be the encoder width {width}")
