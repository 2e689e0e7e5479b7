"""REPA: hidden tokens aligned with the features of a frozen encoder."""

import math

from einops import rearrange
from torch import Tensor
from torch.nn import functional

from redi.core.grids import resized


def alignment_loss(projected: Tensor, features: Tensor) -> Tensor:
    """The negative mean cosine between projected tokens (N, P, E) and features (N, E, h, w) (Yu et al., arXiv
    2410.06940, Eq. 6).

    Where the encoder's grid is not the tokens' square grid, features are resized to it bilinearly.
    """
    side = math.isqrt(projected.shape[1])
    if side * side != projected.shape[1]:
        raise ValueError(f"alignment needs a square grid of tokens, got {projected.shape[1]}")
    if features.shape[-2:] != (side, side):
        features = resized(features, (side, side))
    return -functional.cosine_similarity(projected, rearrange(features, "n e h w -> n (h w) e"), dim=-1).mean()
