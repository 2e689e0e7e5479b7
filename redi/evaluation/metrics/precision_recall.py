"""Precision and recall of samples, by the nearest neighbours of their features."""

import torch
from torch import Tensor

from redi.evaluation.metrics.features import Features, both, mean_of

SPARE = 4  # candidates beside the k nearest: rounding of float32 may change the order of near equals
PAIRS = 1024  # of rows compared at once in float64


def precision_recall(
    *, samples: Features, reference: Features, k: int = 3, block_size: int = 2048, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Precision and recall of Kynkäänniemi et al. (arXiv 1904.06991), with k = 3 as in ADM's evaluation.

    The manifold of a set is the union of balls around its images, whose radius is the distance to the k-th nearest
    other image of the set. Precision: the fraction of samples in the manifold of the reference. Recall: the fraction of
    the reference in the manifold of the samples. Both depend on the numbers of images.

    Distances are computed in blocks of block_size x block_size, from matrix products in float32; where their rounding
    leaves open which side of a radius an image is on, that pair is compared in float64. The memory beside the features
    and a copy of them is that of a few blocks.

    Raises:
        ValueError: swapped roles, different widths, k or fewer images in a set, values that are not finite.
    """
    if k < 1:
        raise ValueError(f"precision_recall: k = {k}, but the nearest neighbour is number 1")
    ours, theirs = both(samples, reference, least=k + 1)
    centre = mean_of(theirs)  # distances stay, but less cancels in them
    a, b = (_Points(tensor, centre, block_size, device) for tensor in (ours, theirs))
    of_samples, of_reference = a.squared_radii(k), b.squared_radii(k)
    precise, recalled = _covered(a, b, of_samples, of_reference)
    return {"precision": float(precise.double().mean()), "recall": float(recalled.double().mean())}


class _Points:
    """Rows (N, P) in blocks, centred, for matrix products; `rows` are as they came."""

    def __init__(self, rows: Tensor, centre: Tensor, block_size: int, device: str | torch.device):
        self.rows, self.centre, self.block_size, self.device = rows, centre, block_size, device
        # One allocation for all: many of a block's size, made between larger ones, scatter the heap over gigabytes.
        self.blocks = torch.empty(rows.shape, device=device).split(block_size)
        for block, part in zip(self.blocks, rows.split(block_size), strict=True):
            block.copy_(self._centred(part))
        self.norms = [block.double().square().sum(dim=1) for block in self.blocks]
        # The rounding of a sum of P products grows as the root of P; this is four times that.
        tolerance = 4 * torch.finfo(torch.float32).eps * rows.shape[1] ** 0.5
        self.margins = [(tolerance * norms).float() for norms in self.norms]
        self.norms = [norms.float() for norms in self.norms]
        self.starts = range(0, len(rows), block_size)

    def _centred(self, rows: Tensor) -> Tensor:
        return (rows.double() - self.centre).to(self.device)

    def squared_distances(self, i: int, other: "_Points", j: int) -> Tensor:
        """Block i against block j of the other, (n, m) float32, right to the sum of their margins."""
        products = self.blocks[i] @ other.blocks[j].T
        return products.mul_(-2).add_(self.norms[i][:, None]).add_(other.norms[j])

    def squared_radii(self, k: int) -> Tensor:
        """The squared distance of every row to its k-th nearest other row, (N,) float64."""
        count = min(k + SPARE, len(self.rows) - 1)
        nearest = [_Nearest(len(block), count, block.device) for block in self.blocks]
        for i in range(len(self.blocks)):
            for j in range(i, len(self.blocks)):  # the other half is the same
                distances = self.squared_distances(i, self, j)
                if i == j:
                    distances.fill_diagonal_(torch.inf)  # itself; an equal row stays
                else:
                    nearest[j].add(distances.T.contiguous(), self.starts[i])
                nearest[i].add(distances, self.starts[j])
        radii = self._kth(k, torch.arange(len(self.rows)), torch.cat([found.positions for found in nearest]))
        # A row that is no candidate is at least this far away.
        margins = torch.cat(self.margins)
        furthest = torch.cat([found.distances[:, -1] for found in nearest]) - margins - margins.max()
        open_rows = (furthest.cpu() < radii).nonzero().squeeze(1)
        if count < len(self.rows) - 1 and len(open_rows):
            radii[open_rows] = self._squared_radii_in_double(k, open_rows)
        return radii

    def _squared_radii_in_double(self, k: int, chosen: Tensor) -> Tensor:
        """For rows whose nearest float32 cannot tell apart, such as those of samples that are all but equal."""
        radii = []
        for part in chosen.split(self.block_size):
            rows = self._centred(self.rows[part])
            found = _Nearest(len(part), k + SPARE, rows.device, torch.float64)
            for start, block in zip(self.starts, self.rows.split(self.block_size), strict=True):
                block = self._centred(block)
                distances = rows.square().sum(dim=1)[:, None] - 2 * rows @ block.T + block.square().sum(dim=1)
                own = (part[:, None] == torch.arange(start, start + len(block))).to(rows.device)
                found.add(distances.masked_fill_(own, torch.inf), start)
            radii.append(self._kth(k, part, found.positions))
        return torch.cat(radii)

    def _kth(self, k: int, chosen: Tensor, candidates: Tensor) -> Tensor:
        """The k-th smallest squared distance of each chosen row to its candidates (n, count)."""
        owners = chosen.repeat_interleave(candidates.shape[1])
        exact = exact_squared_distances(self.rows, self.rows, owners, candidates.flatten().cpu())
        return exact.view(candidates.shape).kthvalue(k, dim=1).values


class _Nearest:
    """The positions of the so many smallest distances seen for every row, in rising order."""

    def __init__(self, num_rows: int, count: int, device: torch.device, dtype: torch.dtype = torch.float32):
        self.distances = torch.full((num_rows, count), torch.inf, device=device, dtype=dtype)
        self.positions = torch.zeros(num_rows, count, dtype=torch.long, device=device)

    def add(self, distances: Tensor, start: int) -> None:
        count = self.distances.shape[1]
        values, columns = distances.topk(min(count, distances.shape[1]), dim=1, largest=False)
        values, order = torch.cat([self.distances, values], dim=1).topk(count, dim=1, largest=False)
        # In place: what outlives the blocks' distances is not to lie between them.
        self.positions.copy_(torch.cat([self.positions, columns + start], dim=1).gather(1, order))
        self.distances.copy_(values)


def _covered(a: _Points, b: _Points, radii_a: Tensor, radii_b: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows of a lie in a ball of b, (N,), and which of b in a ball of a, (M,)."""
    in_b, in_a = torch.zeros(len(a.rows), dtype=torch.bool), torch.zeros(len(b.rows), dtype=torch.bool)
    for i in range(len(a.blocks)):
        for j in range(len(b.blocks)):
            distances = a.squared_distances(i, b, j)
            _mark(in_b, distances, a, i, b, j, radii_b)
            _mark(in_a, distances.T, b, j, a, i, radii_a)
    return in_b, in_a


def _mark(inside: Tensor, distances: Tensor, a: _Points, i: int, b: _Points, j: int, radii: Tensor) -> None:
    """Sets `inside` (N,) for those rows of block i of a that lie in a ball of block j of b.

    Args:
        distances: (n, m), squared, between the two blocks.
        radii: (M,), squared, of all balls of b.
    """
    first, second, device = a.starts[i], b.starts[j], distances.device
    inside = inside[first : first + len(distances)]  # a view
    limits = radii[second : second + distances.shape[1]].float().to(device)
    near = (distances - a.margins[i][:, None] <= limits + b.margins[j]).any(dim=1)
    touched = (near.cpu() & ~inside).nonzero().squeeze(1)
    if not len(touched):
        return
    excess = distances[touched.to(device)] - limits  # (touched, m)
    margins = a.margins[i][touched.to(device)][:, None] + b.margins[j]
    surely, near = (excess <= -margins).any(dim=1).cpu(), (excess <= margins).cpu()
    inside[touched[surely]] = True
    # Of the others the most promising pair, which decides nearly all, then every pair that rounding leaves open.
    best = excess.argmin(dim=1).cpu()
    for rows, columns in ((torch.arange(len(touched)), best), near.nonzero(as_tuple=True)):
        still = ~inside[touched[rows]]
        rows, columns = touched[rows[still]], columns[still] + second
        exact = exact_squared_distances(a.rows, b.rows, rows + first, columns)
        inside[rows[exact <= radii[columns]]] = True


def exact_squared_distances(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Between the rows of a and of b at these positions, in float64 from their differences."""
    exact = torch.empty(len(rows), dtype=torch.float64)
    for part in torch.arange(len(rows)).split(PAIRS):
        difference = a[rows[part]].double().sub_(b[columns[part]])
        exact[part] = difference.square_().sum(dim=1)
    return exact
