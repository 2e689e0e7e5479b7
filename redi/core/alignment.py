"""REPA: hidden tokens of the network are aligned with the features of an encoder (Yu et al., arXiv 2410.06940)."""

import math

from einops import rearrange
from torch import Tensor
from torch.nn import functional

from redi.core.resize import resized


def alignment_loss(projected: Tensor, features: Tensor, per_sample: bool = False) -> Tensor:
    """Return the negative mean cosine between projected tokens (N, P, E) and features (N, E, h, w): () or (N,).

    REPA: Yu et al., arXiv 2410.06940, Eq. 6. Features are resized to the square grid of the tokens.

    Examples:
        >>> import torch
        >>> features = torch.randn(2, 16, 4, 4)
        >>> tokens = rearrange(features, "n e h w -> n (h w) e")
        >>> round(float(alignment_loss(2 * tokens, features)), 4)  # the scale does not matter
        -1.0
    """
    side = math.isqrt(projected.shape[1])
    if side * side != projected.shape[1]:
        raise ValueError(f"REPA alignment of {projected.shape[1]} tokens: must be a square number; use square images")
    if features.shape[-2:] != (side, side):
        features = resized(features, (side, side))
    cosine = functional.cosine_similarity(projected, rearrange(features, "n e h w -> n (h w) e"), dim=-1)  # (N, P)
    return -(cosine.mean(dim=1) if per_sample else cosine.mean())
