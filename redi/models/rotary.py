"""Rotary positions on a grid (Su et al., arXiv 2104.09864; in two dimensions as in LightningDiT, arXiv 2501.01423)."""

import torch
from einops import rearrange
from torch import Tensor


def rotation_table(coordinates: Tensor, head_dim: int) -> Tensor:
    """Return the cosines and sines (2, T, head_dim) of the angles of tokens at (row, column) positions (T, 2).

    The first half of a head turns with the row, the second with the column. Each half has head_dim / 4 frequencies
    10000^(-4k / head_dim), each for two adjacent numbers. A token at (0, 0) does not turn.

    Examples:
        >>> table = rotation_table(torch.tensor([[0, 0], [2, 1]]), head_dim=4)
        >>> table[0, 1].arccos()  # the angles of the second token
        tensor([2., 2., 1., 1.])
    """
    if head_dim % 4:
        what = f"rotary positions turn pairs of numbers for rows and columns, but a head has {head_dim}"
        raise ValueError(
            f"{what}: set DiffusionTransformer.num_heads so that width / num_heads is a multiple of 4 "
            "(of a wide head: head_num_heads and head_width)"
        )
    steps = torch.arange(head_dim // 4, dtype=torch.float64, device=coordinates.device)
    angles = coordinates.double()[..., None] * 10000 ** (-4 * steps / head_dim)  # (T, 2, head_dim / 4)
    angles = rearrange(angles, "t side k -> t (side k)").repeat_interleave(2, dim=-1)
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn every pair of adjacent numbers of x (N, T, heads, head_dim), at least in float32; keep the dtype of x.

    Examples:
        Products of queries and keys depend only on the difference of their positions.

        >>> q, k = torch.randn(2, 1, 1, 1, 8)
        >>> def product(*rows):
        ...     first, second = (rotation_table(torch.tensor([[row, 0]]), 8) for row in rows)
        ...     return (rotated(q, first) * rotated(k, second)).sum()
        >>> torch.allclose(product(1, 3), product(5, 7), atol=1e-5)
        True
    """
    cos, sin = rotation[:, :, None]  # (T, 1, head_dim)
    numbers = x.to(torch.promote_types(x.dtype, cos.dtype))
    pairs = rearrange(numbers, "... (pair two) -> ... pair two", two=2)
    turned = rearrange(torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1), "... pair two -> ... (pair two)")
    return (numbers * cos + turned * sin).to(x.dtype)
