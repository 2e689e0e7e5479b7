"""Random projections by scikit-learn."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from redi.models.reducers import register
from redi.models.reducers.linear import LinearReducer


class RandomRows(LinearReducer):
    """Rows drawn from a seed by scikit-learn's transformer of this name; the data decide mean and scale alone."""

    def __init__(
        self,
        rank: int = 8,
        *,
        scale: Literal["raw", "unit_rms", "whiten"] = "unit_rms",
        standardize: bool = False,
        seed: int = 0,
        path: str | None = None,
    ):
        super().__init__(rank=rank, scale=scale, standardize=standardize)
        self.seed = seed
        if path is not None:  # only now, for the seed is among the settings that must be those of the stored fit
            self.restore(path)

    def rows(self, covariance: Tensor) -> Tensor:
        from sklearn import random_projection

        transformer = getattr(random_projection, type(self).__name__)(self.rank, random_state=self.seed)
        components = transformer.fit(np.zeros((1, len(covariance)))).components_
        dense = components.toarray() if hasattr(components, "toarray") else components
        rows = torch.from_numpy(dense).to(covariance)
        if torch.linalg.matrix_rank(rows) < len(rows):  # sparse rows can be empty or equal where E is small
            name = type(self).__name__
            what = f"draws linearly dependent rows at rank {self.rank} of {rows.shape[1]}"
            raise ValueError(f"{name}.seed = {self.seed} {what}: choose another {name}.seed or a lower {name}.rank")
        return rows

    def fit_settings(self) -> dict:
        return super().fit_settings() | {"rank": self.rank, "seed": self.seed}  # the rows depend on the rank


@register
class GaussianRandomProjection(RandomRows):
    """Rows of independent normal numbers: needs no data but mean and scale (Johnson & Lindenstrauss)."""


@register
class SparseRandomProjection(RandomRows):
    """Rows with a share 1/sqrt(E) of non-zero entries, equal but for their sign (Achlioptas; Li, Hastie & Church)."""
