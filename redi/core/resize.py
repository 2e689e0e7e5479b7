"""Resize feature maps to another grid, and invert the resize."""

import torch
from torch import Tensor
from torch.nn import functional


def resized(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize (N, R, h, w) to (N, R, H, W) bilinearly (paper, section 3.1), with antialiasing when shrinking."""
    shrinks = features.shape[-1] > grid[-1]
    return functional.interpolate(features, grid, mode="bilinear", align_corners=False, antialias=shrinks)


def restored(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Invert `resized`: (N, R, H, W) -> (N, R, h, w), with `grid` = (h, w).

    Applies the pseudoinverse of the resize, which is linear and separable. If (h, w) is at most (H, W), the inverse is
    exact for the results of `resized` and a least-squares fit for other maps. Otherwise it is the map of least norm.

    Examples:
        >>> features = torch.randn(1, 8, 16, 16)
        >>> torch.allclose(restored(resized(features, (32, 32)), (16, 16)), features, atol=1e-4)
        True
    """
    if tuple(features.shape[-2:]) == tuple(grid):
        return features
    rows, columns = (
        torch.linalg.pinv(_matrix(small, large)).float().to(features.device)
        for small, large in zip(grid, features.shape[-2:], strict=True)
    )
    return torch.einsum("hp,nrpq,wq->nrhw", rows, features.float(), columns)


def _matrix(small: int, large: int) -> Tensor:
    """Return the matrix (large, small), float64, that `resized` applies to each axis."""
    return resized(torch.eye(small, dtype=torch.float64)[None, :, None], (1, large))[0, :, 0].T
