"""All features as they are."""

import torch
from torch import Tensor

from redi.models.reducers import register
from redi.models.reducers.linear import LinearReducer


@register
class Identity(LinearReducer):
    """Keeps every feature, centred and scaled. The rank must be the encoder's width; see `LinearReducer`."""

    def __init__(self, rank: int = 768, *, scale: str = "unit_rms", standardize: bool = False, path: str | None = None):
        super().__init__(rank=rank, scale=scale, standardize=standardize, path=path)

    def rows(self, covariance: Tensor) -> Tensor:
        return torch.eye(len(covariance)).to(covariance)

    def check_width(self, width: int) -> None:
        super().check_width(width)
        if self.rank != width:
            raise ValueError(f"set Identity.rank = {width}: it keeps every feature, and {self.rank} is not the width")
