"""Precision and recall of samples, from the nearest neighbours of their features."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from redi.evaluation.metrics.features import Features, both, mean_of


def precision_recall(
    *, samples: Features, reference: Features, k: int = 3, block_size: int = 2048, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Compute precision and recall (Kynkäänniemi et al., arXiv 1904.06991), with k = 3 as in ADM's evaluation.

    The manifold of a set is the union of balls around its images. The radius of a ball is the distance to the k-th
    nearest other image of the set. Precision is the fraction of samples in the manifold of the reference. Recall is the
    fraction of the reference in the manifold of the samples. Both depend on the numbers of images.

    Distances are computed by matrix products in float64, block by block, and compared up to their rounding error.

    Raises ValueError: swapped roles, different widths, k or fewer images in a set, or values that are not finite.
    """
    if k < 1:
        raise ValueError(f"precision_recall: k = {k}: must be at least 1")
    ours, theirs = both(samples, reference, least=k + 1)
    blocks = partial(_blocks, centre=mean_of(theirs), size=block_size, device=device)
    radii_a, radii_b = _squared_radii(partial(blocks, ours), k), _squared_radii(partial(blocks, theirs), k)
    precise, recalled = torch.zeros_like(radii_a, dtype=torch.bool), torch.zeros_like(radii_b, dtype=torch.bool)
    rounding = 4 * torch.finfo(torch.float64).eps * ours.shape[1] ** 0.5  # for sums of P products; grows as P^1/2
    for here, a in blocks(ours):
        for there, b in blocks(theirs):
            norms = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
            distances = _squared_distances(a, b) - rounding * norms
            precise[here] |= (distances <= radii_b[there]).any(dim=1)
            recalled[there] |= (distances <= radii_a[here, None]).any(dim=0)
    return {"precision": float(precise.double().mean()), "recall": float(recalled.double().mean())}


def _blocks(rows: Tensor, *, centre: Tensor, size: int, device: str | torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows (N, P) in blocks of `size`, minus the centre, which reduces cancellation in the distances."""
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        yield part, (rows[part].double() - centre).to(device)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distances (n, m) of rows (n, P) and (m, P)."""
    return (a @ b.T).mul_(-2).add_(a.square().sum(dim=1)[:, None]).add_(b.square().sum(dim=1))


def _squared_radii(blocks: partial, k: int) -> Tensor:
    """Return the squared distance of every row to its k-th nearest other row, (N,)."""
    radii = []
    for here, a in blocks():
        nearest = []
        for there, b in blocks():
            distances = _squared_distances(a, b)
            if here == there:
                distances.fill_diagonal_(torch.inf)  # excludes the row itself, but not equal rows
            nearest.append(distances.topk(min(k, len(b)), dim=1, largest=False).values)
        radii.append(torch.cat(nearest, dim=1).kthvalue(k, dim=1).values)
    return torch.cat(radii)
