"""A reducer that keeps all features."""

from typing import Literal

import torch
from torch import Tensor

from redi.models.reducers import register
from redi.models.reducers.linear import LinearReducer


@register
class Identity(LinearReducer):
    """Keep every feature, centred and scaled. The rank must equal the encoder width; arguments: `LinearReducer`.

    Examples:
        >>> features = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> identity = Identity(rank=16, scale="raw")
        >>> identity.fit([features])
        >>> torch.allclose(identity.inverse(identity(features)), features, atol=1e-5)
        True
    """

    def __init__(
        self, rank: int = 768, *, scale: Literal["raw", "unit_rms", "whiten"] = "unit_rms", standardize: bool = False,
        path: str | None = None,
    ):  # fmt: skip
        super().__init__(rank=rank, scale=scale, standardize=standardize, path=path)

    def rows(self, covariance: Tensor) -> Tensor:
        return torch.eye(len(covariance)).to(covariance)

    def check_width(self, width: int) -> None:
        super().check_width(width)
        if self.rank != width:
            raise ValueError(f"Identity.rank = {self.rank}: must be the encoder width {width}")
