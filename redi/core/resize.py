"""Feature maps on another grid, and back."""

import torch
from torch import Tensor
from torch.nn import functional


def resized(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, R, h, w) -> (N, R, H, W), bilinearly (paper, section 3.1), antialiased where it shrinks."""
    shrinks = features.shape[-1] > grid[-1]
    return functional.interpolate(features, grid, mode="bilinear", align_corners=False, antialias=shrinks)


def restored(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `resized`: (N, R, H, W) -> (N, R, h, w), the map on `grid` that was resized to `features`.

    Uses the pseudoinverse of the resize, which is linear and separable. Where h, w are at most H, W, it is exact for
    what `resized` returns and least squares for other maps; where they are larger, the map of least norm.
    """
    if tuple(features.shape[-2:]) == tuple(grid):
        return features
    rows, columns = (
        torch.linalg.pinv(_matrix(small, large)).float().to(features.device)
        for small, large in zip(grid, features.shape[-2:], strict=True)
    )
    return torch.einsum("hp,nrpq,wq->nrhw", rows, features.float(), columns)


def _matrix(small: int, large: int) -> Tensor:
    """(large, small) float64: what `resized` does to every axis, from unit vectors."""
    return resized(torch.eye(small, dtype=torch.float64)[None, :, None], (1, large))[0, :, 0].T
