"""Principal component analysis."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from redi.models.reducers import register
from redi.models.reducers.linear import LinearReducer

log = logging.getLogger(__name__)


@register
class PCA(LinearReducer):
    """Eigenvectors of the features' covariance, largest first (paper, section 3.4).

    One fit holds all E components, so every rank is a slice of it. Arguments: `LinearReducer`; the paper's released
    code standardises and leaves the scale raw. `path` may also be the file published with it, dino_pca_model.pth.
    """

    def rows(self, covariance: Tensor) -> Tensor:
        vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1).T  # (E, E), rows by falling eigenvalue
        # An eigenvector's sign is arbitrary: make its largest entry positive, as scikit-learn does.
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
            log.warning("%s: models published with it expect PCA.scale = 'raw', not %r", binding, self.scale)
        state, fitted_on = read_published_pca(path)
        self.take_over(state, fitted_on, binding)
