"""Principal component analysis."""

import torch
from torch import Tensor

from redi.models.reducers import register
from redi.models.reducers.linear import LinearReducer


@register
class PCA(LinearReducer):
    """Eigenvectors of the features' covariance, largest first (paper, section 3.4).

    One fit holds all E components, so every rank is a slice of it. See `LinearReducer` for the arguments; the
    released code of the paper standardises and leaves the scale raw, the paper says nothing of either.
    """

    def rows(self, covariance: Tensor) -> Tensor:
        vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1).T  # (E, E), rows by falling eigenvalue
        # An eigenvector's sign is arbitrary: make its largest entry positive, as scikit-learn does.
        largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
        return vectors * largest.sign()
