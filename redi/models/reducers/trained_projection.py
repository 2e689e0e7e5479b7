"""The half of `LearnedProjection` that trains with the network: batch norm and regularisers."""

from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

NAMES = ("projection", "running_mean", "running_covariance")  # of the tensors that training changes


def whitening(projection: Tensor, covariance: Tensor) -> Tensor:
    """Return P (S, R) with columns divided by the standard deviations of the projections of channels (S, S)."""
    variances = (projection * (covariance @ projection)).sum(dim=0)
    return projection / variances.clamp(min=torch.finfo(variances.dtype).tiny).sqrt()


def normalised(channels: Tensor, projection: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Return the batch norm of the projections, (N, S, h, w) -> (N, R, h, w), from the moments of the channels.

    The batch norm of f P needs its mean P'm and variances diag(P'C P) alone, and so no second pass over the batch.
    """
    weights = whitening(projection, covariance)
    return torch.einsum("sr,nshw->nrhw", weights, channels - mean[:, None, None])


class TrainedProjection(nn.Module):
    """The half of `LearnedProjection` that trains with the network: P, the statistics, and the regularisers.

    The statistics of a batch are those of the whole batch over all processes and accumulated parts, so that neither
    their number nor the precision affects the result except by rounding.

    Args:
        units: (S,) factors from stored channels to principal components.
        rank, name: R, and the class that the settings belong to. Others: see `LearnedProjection`.

    Examples:
        >>> from redi.models.reducers import LearnedProjection
        >>> part = LearnedProjection(rank=2, store_rank=4).trained_part()
        >>> part.observe(stored := torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(0)))
        >>> z = part(stored)
        >>> z.shape, torch.allclose(z.var(dim=(0, 2, 3), correction=0), torch.ones(2))
        (torch.Size([8, 2, 2, 2]), True)
    """

    running_mean: Tensor  # (S,)
    running_covariance: Tensor  # (S, S)
    units: Tensor
    mean: Tensor  # (S,) of the batch, like the covariance
    covariance: Tensor
    floor: Tensor  # (), the standard deviation of VICReg's floor

    def __init__(self, units: Tensor, rank: int, *, name: str, speed: float, momentum: float, **settings):
        super().__init__()
        size, device = len(units), units.device
        self.rank, self.name, self.speed, self.momentum, self.settings = rank, name, speed, momentum, settings
        self.image_gradient: bool = settings["image_gradient"]
        self.warned_at = float(rank)
        self.projection = nn.Parameter(torch.eye(size, rank, device=device) / speed)
        self.register_buffer("running_mean", torch.zeros(size, device=device))
        self.register_buffer("running_covariance", torch.eye(size, device=device))
        self.register_buffer("units", units.clone(), persistent=False)
        self.register_buffer("floor", torch.ones((), device=device), persistent=False)
        self.register_buffer("mean", torch.zeros(size, device=device), persistent=False)
        self.register_buffer("covariance", torch.eye(size, device=device), persistent=False)

    @torch.no_grad()
    def observe(self, stored: Tensor, average: Callable[[Mapping], Mapping] = dict) -> None:
        """Take the moments of a batch (n, S, h, w), averaged over processes by `average`."""
        rows = rearrange(self._channels(stored), "n s h w -> (n h w) s")
        moments = average({"mean": rows.mean(dim=0), "square": rows.T @ rows / len(rows)})
        self.mean.copy_(moments["mean"])
        self.covariance.copy_(moments["square"] - torch.outer(self.mean, self.mean))
        finite = self.covariance.isfinite().all()  # a batch that is skipped leaves no trace
        for running, new in ((self.running_mean, self.mean), (self.running_covariance, self.covariance)):
            running.lerp_(torch.where(finite, new, running), self.momentum)

    def forward(self, stored: Tensor) -> Tensor:
        """Return z (n, R, h, w) float32 of stored channels (n, S, h, w), normalised by the moments of the batch."""
        with torch.autocast(stored.device.type, enabled=False):
            return normalised(self._channels(stored), self.projection, self.mean, self.covariance)

    def terms(self, stored: Tensor, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the regularisers, and each of them, effective rank and std for the log."""
        with torch.autocast(stored.device.type, enabled=False):
            columns = self.speed * self.projection
            stds = (columns * (self.covariance @ columns)).sum(dim=0).clamp(min=0).sqrt()  # before the norm
            weights = whitening(columns, self.covariance)
            correlation = weights.T @ self.covariance @ weights  # (R, R)
            values = {"ortho": orthogonality(columns, self.settings["ortho_on"]), "cov": decorrelation(correlation)}
            if self.settings["vf"] == "variance":
                values["vf"] = (1 - stds / self.floor).clamp(min=0).mean()
            else:
                values["vf"] = (similarity(z) - similarity(self._channels(stored))).abs().mean()
            total = torch.stack([self.settings[f"{name}_weight"] * value for name, value in values.items()]).sum()
        values["effective_rank"] = effective_rank(correlation)
        return total, values | {f"std_{number}": std for number, std in enumerate(stds, start=1)}

    def remark(self, group: str, values: Mapping[str, float]) -> str | None:
        """Return a warning if the effective rank has fallen to half of R, or of that in the warning before."""
        rank = values.get("effective_rank", self.rank)
        if not rank < self.warned_at / 2:
            return None
        self.warned_at = rank
        what = f"the learned projection of {group} collapses: its effective rank is {rank:.1f} of {self.rank}"
        cov, speed = f"{self.name}.cov_weight = {self.settings['cov_weight']:g}", f"{self.name}.speed = {self.speed:g}"
        return f"{what}, and a falling loss means little. Start again with more than {cov}, or less than {speed}"

    def _channels(self, stored: Tensor) -> Tensor:
        return stored.float() * self.units[:, None, None]


def orthogonality(columns: Tensor, on: str = "raw") -> Tensor:
    """Return `|P'P - I|^2` of columns (S, R), 'raw' or 'normalised'."""
    columns = functional.normalize(columns, dim=0) if on == "normalised" else columns
    return (columns.T @ columns - torch.eye(columns.shape[1], device=columns.device)).square().sum()


def decorrelation(covariance: Tensor) -> Tensor:
    """Return the sum of the squares off the diagonal of a covariance (R, R), divided by R."""
    return (covariance - covariance.diagonal().diag()).square().sum() / len(covariance)


def effective_rank(covariance: Tensor) -> Tensor:
    """Return (sum of eigenvalues)^2 / sum of their squares of a covariance (R, R): the participation ratio, 1 to R."""
    return covariance.diagonal().sum().square() / covariance.square().sum()


def similarity(maps: Tensor) -> Tensor:
    """Return the cosine similarities (N, P, P) of the positions of every map, or (1, N, N) of maps (N, C, 1, 1)."""
    pattern = "n c 1 1 -> 1 n c" if maps.shape[-2:] == (1, 1) else "n c h w -> n (h w) c"
    tokens = functional.normalize(rearrange(maps, pattern), dim=-1)
    return tokens @ tokens.mT
