"""The reducer of the paper: principal component analysis."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from redi.models.reducers import register
from redi.models.reducers.linear import LinearReducer

log = logging.getLogger(__name__)


@register
class PCA(LinearReducer):
    """Project onto the eigenvectors of the features' covariance with the largest eigenvalues (paper, section 3.4).

    One fit computes all E components, so every rank uses the same fit. Arguments: `LinearReducer`. The paper's released
    code sets standardize = True and scale = 'raw'. `path` may also be its published file, dino_pca_model.pth.

    Examples:
        >>> features = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> pca = PCA(rank=16)
        >>> pca.fit([features])
        >>> torch.allclose(pca.inverse(pca(features)), features, atol=1e-4)  # full rank: lossless
        True
    """

    def rows(self, covariance: Tensor) -> Tensor:
        vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1).T  # (E, E), one a row, by decreasing eigenvalue
        # An eigenvector's sign is arbitrary: its largest entry becomes positive, as in scikit-learn.
        largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
        return vectors * largest.sign()

    def restore(self, path: str | Path) -> None:
        if Path(path).suffix not in (".pth", ".pt"):
            return super().restore(path)
        from redi.models.reducers.published import read_published_pca

        binding = f"PCA.path = {str(path)!r}"
        if not self.standardize:
            raise ValueError(f"{binding} was fitted to standardised features: set PCA.standardize = True")
        if self.scale != "raw":
            log.warning("%s: PCA.scale = %r, but the models published with this file need 'raw'", binding, self.scale)
        state, fitted_on = read_published_pca(path)
        self.take_over(state, fitted_on, binding)
