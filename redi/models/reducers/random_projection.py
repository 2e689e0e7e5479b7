"""Random projections of scikit-learn."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from redi.models.reducers import register
from redi.models.reducers.linear import LinearReducer


class RandomRows(LinearReducer):
    """Draw the components from a seed, by scikit-learn's class of the same name. Only mean and scale are fitted.

    Args:
        seed: seed of the components.

    Examples:
        >>> features = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> projection = GaussianRandomProjection(rank=4, seed=1)
        >>> projection.fit([features])
        >>> projection.components.shape
        torch.Size([4, 16])
    """

    def __init__(
        self, rank: int = 8, *, scale: Literal["raw", "unit_rms", "whiten"] = "unit_rms", standardize: bool = False,
        seed: int = 0, path: str | None = None,
    ):  # fmt: skip
        super().__init__(rank=rank, scale=scale, standardize=standardize)
        self.seed = seed
        if path is not None:  # after the seed, which `restore` compares with that of the stored fit
            self.restore(path)

    def rows(self, covariance: Tensor) -> Tensor:
        from sklearn import random_projection

        transformer = getattr(random_projection, type(self).__name__)(self.rank, random_state=self.seed)
        components = transformer.fit(np.zeros((1, len(covariance)))).components_
        dense = components.toarray() if hasattr(components, "toarray") else components
        rows = torch.from_numpy(dense).to(covariance)
        if torch.linalg.matrix_rank(rows) < len(rows):  # for small E, sparse rows can be empty or equal
            name = type(self).__name__
            problem = f"draws linearly dependent components at rank {self.rank} of {rows.shape[1]}"
            raise ValueError(f"{name}.seed = {self.seed} {problem}: choose another {name}.seed or a lower {name}.rank")
        return rows

    def fit_settings(self) -> dict:
        return super().fit_settings() | {"rank": self.rank, "seed": self.seed}  # the rows depend on the rank


@register
class GaussianRandomProjection(RandomRows):
    """Project onto vectors of independent normal entries (Johnson & Lindenstrauss, 1984). Arguments: `LinearReducer`.

    Examples:
        >>> features = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> projection = GaussianRandomProjection(rank=4, scale="unit_rms")
        >>> projection.fit([features])
        >>> projection(features).shape
        torch.Size([4, 4, 8, 8])
    """


@register
class SparseRandomProjection(RandomRows):
    """Project onto sparse random vectors (Li, Hastie & Church, 2006). Arguments: `LinearReducer`.

    A share 1 / sqrt(E) of the entries is nonzero, with equal magnitude and random sign.

    Examples:
        >>> features = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> projection = SparseRandomProjection(rank=4)
        >>> projection.fit([features])
        >>> len(projection.components.abs().unique())  # zero and one magnitude
        2
    """
