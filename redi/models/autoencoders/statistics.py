"""Statistics that normalise latents: mean and standard deviation of all values, per channel, or per position."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from redi.core.registry import configurable
from redi.runtime.checksums import sha256 as file_sha256
from redi.runtime.checksums import tensors_sha256
from redi.runtime.paths import local_path
from redi.runtime.ranges import check_choice, check_number
from redi.runtime.weights_files import check_tensors, read_weights_file

# Entries of published files: SFD and LightningDiT {mean, std}, RAE {mean, var}, REPA-E {latents_bias, latents_scale}.
MEANS = ("mean", "latents_bias")
SPREADS = {"std": ("std", "latents_scale"), "variance": ("var",)}


@configurable
class LatentStatistics(nn.Module):
    """Normalise latents z (N, C, H, W) to (z - mean) / std, and back. Instead of an autoencoder's scale and shift.

    Mean and std broadcast over (C, H, W): a scalar (), per channel (C,) or (1, C, 1, 1), per position (C, H, W).

    Args:
        path: .pt or .safetensors file with std, latents_scale (1 / std) or var, and with mean or latents_bias (0 if it
            is None or missing). Without a path, `prepare` fits the statistics. Checkpoints store them.
        rule: 'std' takes std or 1 / latents_scale of the file, plus eps; 'variance' takes sqrt(var + eps).
        sha256: expected SHA-256 of the file.
        per: what `prepare` fits, one value per 'channel' or per 'position' in each channel.
        num_images: the number of images that `prepare` fits them on (SFD, arXiv 2512.04926: 10,000).

    Examples:
        >>> statistics = LatentStatistics.of(mean=torch.tensor([1.0, 0.0]), spread=torch.tensor([2.0, 1.0]))
        >>> z = torch.tensor([5.0, 3.0]).view(1, 2, 1, 1)
        >>> statistics(z).flatten(), torch.equal(statistics.inverse(statistics(z)), z)
        (tensor([2., 3.]), True)
    """

    mean: Tensor
    std: Tensor
    in_checkpoints = True  # False: the weights file of the autoencoder holds them

    def __init__(
        self, path: str | None = None, *, rule: Literal["std", "variance"] = "std", eps: float = 0.0,
        sha256: str | None = None, per: Literal["channel", "position"] = "channel", num_images: int = 10_000,
    ):  # fmt: skip
        super().__init__()
        check_choice("LatentStatistics.rule", rule, tuple(SPREADS))
        check_choice("LatentStatistics.per", per, ("channel", "position"))
        check_number("LatentStatistics.eps", eps, 0, whole=False)
        check_number("LatentStatistics.num_images", num_images, 2)
        self.path, self.rule, self.eps, self.sha256 = path, rule, eps, sha256
        self.per, self.num_images = per, num_images
        self.source = "the fitted statistics" if path is None else f"LatentStatistics.path = {path!r}"
        for name in ("mean", "std"):  # empty until they are read or fitted
            self.register_buffer(name, torch.empty(0))
        self.register_load_state_dict_pre_hook(_take_shapes)
        self._moments: LatentMoments | None = None  # see `collecting`

    @classmethod
    def of(
        cls, mean: Tensor | float, spread: Tensor | float, *, rule: Literal["std", "variance"] = "std", eps: float = 0.0
    ) -> "LatentStatistics":
        """Return statistics with this mean, and this std or variance, as the `rule` says."""
        statistics = cls(rule=rule, eps=eps)
        statistics.source = "LatentStatistics.of"
        statistics._set(torch.as_tensor(mean), torch.as_tensor(spread))
        return statistics

    @property
    def fitted(self) -> bool:
        """Whether mean and std are known, or can be read from a file."""
        return self.path is not None or len(self.mean) > 0

    def load(self) -> None:
        """Read the file now instead of at first use. Raises ValueError if it is missing or damaged."""
        if self.path is not None and not len(self.mean):
            self._set(*self._read(local_path(self.path)))

    def forward(self, z: Tensor) -> Tensor:
        """Normalise latents (N, C, H, W)."""
        if self._moments is not None:
            self._moments.add(z)
            return z
        self._require(z)
        return (z - self.mean) / self.std

    def inverse(self, latents: Tensor) -> Tensor:
        """Return the latents (N, C, H, W) that `forward` normalised."""
        self._require(latents)
        return latents * self.std + self.mean

    def check(self, channels: int, height: int, width: int) -> None:
        """Raise ValueError if mean and std, once known, do not broadcast over latents (C, H, W)."""
        shape = (channels, height, width)
        for stored in (self.mean, self.std):
            if len(stored) and any(a not in (1, b) for a, b in zip(stored.shape, shape, strict=True)):
                what = f"{self.source} has the shape {tuple(stored.shape)}, but the latents are {shape}"
                raise ValueError(f"{what}: use statistics of this autoencoder and image size, or fit them: unbind path")

    @contextlib.contextmanager
    def collecting(self) -> Iterator["LatentMoments"]:
        """Collect the moments of all latents that pass `forward` inside this context, which leaves them unchanged."""
        self._moments = LatentMoments()
        try:
            yield self._moments
        finally:
            self._moments = None

    def fit(self, moments: "LatentMoments") -> None:
        """Set mean and std to those of the collected latents."""
        mean, variance = moments.mean_and_variance(self.per)
        self._set(mean, variance.sqrt() if self.rule == "std" else variance)

    def deviation(self, moments: "LatentMoments") -> tuple[float, float, float]:
        """Return the largest difference of collected latents' mean, in std, and the least and largest ratio of std."""
        mean, variance = moments.mean_and_variance("position" if self.std[0].numel() > 1 else "channel")
        ratio = variance.sqrt() / self.std
        return float(((mean - self.mean) / self.std).abs().max()), float(ratio.min()), float(ratio.max())

    def fit_settings(self) -> dict:
        """Return every setting that affects `fit`, as JSON."""
        return {"rule": self.rule, "eps": self.eps, "per": self.per, "num_images": self.num_images}

    def provenance(self) -> dict:
        """Return the hash of mean and std as JSON; before a fit, its settings."""
        self.load()
        return {"sha256": tensors_sha256(self.state_dict())} if self.fitted else self.fit_settings()

    def _require(self, z: Tensor) -> None:
        self.load()
        if not self.fitted:
            raise ValueError("the LatentStatistics are not fitted: call prepare() first, or bind LatentStatistics.path")
        self.check(*z.shape[1:])

    def _set(self, mean: Tensor, spread: Tensor) -> None:
        mean, spread = (_as_map(tensor, self.source).double() for tensor in (mean, spread))
        std = spread + self.eps if self.rule == "std" else (spread + self.eps).sqrt()
        if not (mean.isfinite().all() and std.isfinite().all() and (std.float() > 0).all()):
            advice = "download them again, or bind LatentStatistics.eps if some latents are constant"
            raise ValueError(f"{self.source}: mean must be finite, and std positive: {advice}")
        self.mean, self.std = mean.to(self.mean.device, torch.float32), std.to(self.std.device, torch.float32)

    def _read(self, path: Path) -> tuple[Tensor, Tensor]:
        if not path.is_file():
            raise ValueError(f"{self.source}: no such file: download it, or leave path unbound to fit on the data")
        if self.sha256 not in (None, digest := file_sha256(path)):
            advice = "use the file with that hash, or change LatentStatistics.sha256"
            raise ValueError(f"{self.source} has the SHA-256 {digest}, not {self.sha256}: {advice}")
        try:
            content = read_weights_file(path)
            entries = content if isinstance(content, Mapping) else {}
            tensors = {str(k).removesuffix("_broadcast"): t for k, t in entries.items() if isinstance(t, Tensor)}
            check_tensors(tensors.values(), path.stat().st_size)
        except ValueError as error:
            raise ValueError(f"{self.source} {error}") from None
        name = next((name for name in SPREADS[self.rule] if name in tensors), None)
        if name is None:
            others = {rule for rule, names in SPREADS.items() if set(names) & set(tensors)}
            advice = f"set LatentStatistics.rule = {others.pop()!r}" if others else "use a file of statistics"
            needed = f"{' or '.join(SPREADS[self.rule])}, which LatentStatistics.rule = {self.rule!r} needs"
            raise ValueError(f"{self.source} holds {', '.join(tensors) or 'no tensors'}, not {needed}: {advice}")
        spread = 1 / tensors[name].double() if name == "latents_scale" else tensors[name]
        return next((tensors[mean] for mean in MEANS if mean in tensors), torch.zeros(())), spread


class LatentMoments:
    """Count, mean and scatter of latents at every position: float64, one pass, merged as in `reducers.moments`.

    Examples:
        >>> z = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> moments = LatentMoments()
        >>> for batch in z.split(4):
        ...     moments.add(batch)
        >>> mean, variance = moments.mean_and_variance("channel")
        >>> torch.allclose(variance, z.double().var(dim=(0, 2, 3), keepdim=True)[0])
        True
    """

    def __init__(self) -> None:
        self.count, self.mean, self.scatter = 0, torch.zeros(()), torch.zeros(())

    def add(self, z: Tensor) -> None:
        """Add latents (N, C, H, W)."""
        variance, mean = torch.var_mean(z.double(), dim=0, correction=0)
        if not self.count:
            self.mean, self.scatter = torch.zeros_like(mean), torch.zeros_like(mean)
        difference, total = mean - self.mean, self.count + len(z)
        self.scatter += len(z) * variance + difference**2 * (self.count * len(z) / total)
        self.mean += difference * (len(z) / total)
        self.count = total

    def mean_and_variance(self, per: str) -> tuple[Tensor, Tensor]:
        """Return mean and unbiased variance per 'position' (C, H, W) or per 'channel' (C, 1, 1)."""
        if per == "position":
            return self.mean, self.scatter / (self.count - 1)
        mean = self.mean.mean(dim=(1, 2), keepdim=True)
        scatter = (self.scatter + self.count * (self.mean - mean) ** 2).sum(dim=(1, 2), keepdim=True)
        return mean, scatter / (self.count * math.prod(self.mean.shape[1:]) - 1)


def _as_map(tensor: Tensor, source: str) -> Tensor:
    """Return a scalar, (C,), (1, C, H, W) or (C, H, W) as a tensor with three dimensions."""
    shape = tensor.shape[1:] if tensor.dim() == 4 and len(tensor) == 1 else tensor.shape
    if len(shape) not in (0, 1, 3):
        raise ValueError(f"{source} has the shape {tuple(tensor.shape)}: must be (), (C,), (1, C, 1, 1) or (C, H, W)")
    return tensor.reshape(*shape, *[1] * (3 - len(shape)))


def _take_shapes(statistics: LatentStatistics, state: Mapping, prefix: str, *_) -> None:
    for name in ("mean", "std"):
        setattr(statistics, name, torch.empty_like(state[prefix + name], device=statistics.mean.device))
