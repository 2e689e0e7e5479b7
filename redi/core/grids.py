"""Feature maps on another grid."""

from torch import Tensor
from torch.nn import functional


def resized(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, R, h, w) -> (N, R, H, W), bilinearly (paper, section 3.1), antialiased where it shrinks."""
    shrinks = features.shape[-1] > grid[-1]
    return functional.interpolate(features, grid, mode="bilinear", align_corners=False, antialias=shrinks)
