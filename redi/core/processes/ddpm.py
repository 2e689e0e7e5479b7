"""The discrete diffusion process of DiT."""

import copy
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.processes import Process, checked_uniforms, per_sample, register
from redi.runtime.ranges import check_choice


@register
class DDPM(Process):
    """The discrete diffusion process with T timesteps and noise prediction (Ho et al., arXiv 2006.11239).

        q(x_k | x_k-1) = N(sqrt(1 - beta_k) x_k-1, beta_k),   beta_k linear from beta_min to beta_max

    The literature's timestep k = 0 ... T - 1, the time input of the network, is t = 1 - (k + 1) / T here; t = 1 is the
    data. `step(t)` is k + 1, so step 0 is the data, and `time` is its inverse. Other t are rounded to the nearest step.

    Args:
        num_timesteps: T, the number of timesteps.
        beta_min, beta_max: variances of the first and the last step.
        learned_variance: the channel groups for which the network learns the variance of the reverse step. A second
            output per channel interpolates between the log-variances 'small' and 'large' (Nichol & Dhariwal, arXiv
            2102.09672, Eq. 15); the variational bound trains it (Eq. 16). None: all groups, as in DiT. (): no group.
        variance: variance of the other groups: 'small' (of the posterior given the data) or 'large' (beta).

    Examples:
        >>> process = DDPM(num_timesteps=1000, learned_variance=())
        >>> process.step(0.0), process.step(1.0), process.time(1000)  # all noise, data
        (1000, 0, 0.0)
        >>> round(process.alpha(0.9) ** 2 + process.sigma(0.9) ** 2, 6)
        1.0
        >>> x, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        >>> x_t, target = process.corrupt(x, noise, 0.5)
        >>> torch.allclose(process.clean(target, x_t, 0.5), x, atol=1e-4)
        True
    """

    num_timesteps: int

    def __init__(
        self, num_timesteps: int = 1000, *, beta_min: float = 1e-4, beta_max: float = 0.02,
        learned_variance: Sequence[str] | None = None, variance: Literal["small", "large"] = "small",
    ):  # fmt: skip
        if num_timesteps < 2:
            raise ValueError(f"DDPM.num_timesteps = {num_timesteps}: must be at least 2")
        if not 0 < beta_min <= beta_max < 1:
            values = f"DDPM.beta_min = {beta_min}, DDPM.beta_max = {beta_max}"
            raise ValueError(f"{values}: must satisfy 0 < beta_min <= beta_max < 1")
        check_choice("DDPM.variance", variance, ("small", "large"))
        learned_variance = (learned_variance,) if isinstance(learned_variance, str) else learned_variance
        self.num_timesteps, self.beta_min, self.beta_max = num_timesteps, beta_min, beta_max
        self.learned_variance = None if learned_variance is None else tuple(learned_variance)
        self.variance = variance
        self._channels: Channels | None = None
        # Entry k + 1 is timestep k; entry 0 is the data.
        table = np.concatenate([[1.0], np.cumprod(1 - self.betas.numpy())])
        self._table = torch.from_numpy(table)  # for a tensor t, on its device
        self._alphas_cumprod = table.tolist()  # for a float t, without waiting for a device

    def for_channels(self, channels: Channels, device: torch.device | str = "cpu") -> "DDPM":
        if unknown := [name for name in self.learned_variance or () if name not in channels]:
            raise ValueError(f"DDPM.learned_variance names {unknown}: must be among {', '.join(channels)}")
        bound = copy.copy(self)
        bound._channels, bound._table = channels, self._table.to(device)
        return bound

    @property
    def betas(self) -> Tensor:
        """(T,) float64 on the CPU, the variance of the noise that each timestep adds. alpha^2 = cumprod(1 - betas)."""
        return torch.from_numpy(np.linspace(self.beta_min, self.beta_max, self.num_timesteps, dtype=np.float64))

    @property
    def variance_groups(self) -> tuple[str, ...]:  # type: ignore[override]  # read-only: follows the channel groups
        learned = self.learned_variance
        return tuple(name for name in self._channels or () if learned is None or name in learned)

    def step(self, t):
        """Return the step at t (timestep + 1), from 0 (data) to T (most noise): an int, or a tensor if t is one."""
        if isinstance(t, Tensor):
            return ((1 - t) * self.num_timesteps).round().long().clamp(0, self.num_timesteps)
        return min(max(round((1 - t) * self.num_timesteps), 0), self.num_timesteps)

    def time(self, step: int) -> float:
        """Return the t of a step, the inverse of `step(t)`."""
        return 1 - step / self.num_timesteps

    def draw_times(self, shape: tuple[int, ...], device: torch.device | str, uniforms: Tensor | None = None) -> Tensor:
        if uniforms is None:
            steps = torch.randint(1, self.num_timesteps + 1, shape, device=device)
        else:  # uniform 0 maps to the noisiest timestep T - 1, so that times increase with the uniforms
            index = (checked_uniforms(uniforms, shape, device) * self.num_timesteps).long()
            steps = self.num_timesteps - index.clamp(max=self.num_timesteps - 1)
        return 1 - steps / self.num_timesteps

    def model_time(self, t: Tensor) -> Tensor:
        return (self.step(t) - 1).clamp(min=0).to(t.dtype)

    def alpha(self, t):
        return _like(t, t, self.alpha_cumprod(t) ** 0.5)

    def sigma(self, t):
        return _like(t, t, (1 - self.alpha_cumprod(t)) ** 0.5)

    def alpha_cumprod(self, t):
        """Return alpha(t)^2 in float64, because sigma^2 = 1 - alpha^2 is only 1e-4 at the first step."""
        step = self.step(per_sample(t))
        return self._table.to(t.device)[step] if isinstance(t, Tensor) else self._alphas_cumprod[step]

    def target(self, x: Tensor, noise: Tensor, t) -> Tensor:
        return noise

    def noise(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        return prediction[:, : x_t.shape[1]]

    def clean(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        return (x_t - self.sigma(t) * self.noise(prediction, x_t, t)) / self.alpha(t)

    def velocity(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        raise ValueError(
            "DDPM has discrete timesteps and no velocity: sample with samplers.Ancestral or samplers.DDIM, or train "
            "with processes.VP, its continuous-time limit"
        )

    def reverse_step(self, prediction: Tensor, x_t: Tensor, t: float | Tensor, s: float | Tensor):
        """Return the mean and log-variance of p(x_s | x_t), both (N, C, H, W), for a step from t to the less noisy s.

        If the step skips timesteps, the variances are those of the shortened process ("respacing"). Raises ValueError
        if the prediction lacks the channels of learned variances, or has too many.
        """
        data = self.clean(prediction, x_t, t)
        mean, low = self.posterior(data, x_t, t, s)
        beta = 1 - self.alpha_cumprod(t) / self.alpha_cumprod(s)
        high = _like(t, s, _log(beta)) + torch.zeros_like(x_t)
        low = low + torch.zeros_like(x_t)
        log_variance = low if self.variance == "small" else high
        if learned := self._learned_channels(prediction, x_t):
            fraction = (prediction[:, x_t.shape[1] :] + 1) / 2
            # Built on the device: copying a list to the device would make the host wait.
            index = torch.cat([torch.arange(first, first + 1, device=x_t.device) for first in learned])
            interpolated = fraction * high.index_select(1, index) + (1 - fraction) * low.index_select(1, index)
            log_variance = log_variance.index_copy(1, index, interpolated)
        return mean, log_variance

    def _learned_channels(self, prediction: Tensor, x_t: Tensor) -> list[int]:
        """Return the channels of x with a second output, in the order of these outputs."""
        c = x_t.shape[1]
        if self.learned_variance is None:
            learned = list(range(c))
        elif self._channels is None and self.learned_variance:
            setting = f"DDPM.learned_variance = {self.learned_variance!r}"
            raise ValueError(f"{setting} names channel groups: call for_channels(channels) first")
        else:
            slices = [self._channels.slice(name) for name in self.variance_groups] if self._channels else []
            learned = [i for channels in slices for i in range(c)[channels]]
        if prediction.shape[1] != c + len(learned):
            expected = f"must have {c} for the noise and {len(learned)} for learned variances"
            advice = f"change DDPM.learned_variance = {self.learned_variance!r} (use () to learn no variance)"
            raise ValueError(f"the prediction has {prediction.shape[1]} channels: {expected}; {advice}")
        return learned

    def posterior(self, data: Tensor, x_t: Tensor, t, s):
        """Return the mean (N, C, H, W) and log-variance of q(x_s | x_t, data) (Ho et al., Eq. 7).

        At the last step, where x_s is the data, the variance is 0, and the log-variance is that of the step before, as
        in the published code.
        """
        at_t, at_s = self.alpha_cumprod(t), self.alpha_cumprod(s)
        beta = 1 - at_t / at_s
        of_data = _like(t, s, at_s**0.5 * beta / (1 - at_t))
        of_x_t = _like(t, s, (1 - beta) ** 0.5 * (1 - at_s) / (1 - at_t))
        first, second = self._alphas_cumprod[1:3]
        smallest = (1 - second / first) * (1 - first) / (1 - second)  # the variance of the step before the last
        log_variance = _log(beta * (1 - at_s) / (1 - at_t), floor=smallest)
        return of_data * data + of_x_t * x_t, _like(t, s, log_variance)

    def variational_bound(self, prediction: Tensor, x: Tensor, x_t: Tensor, t) -> dict[str, Tensor]:
        """Return KL(q(x_s | x_t, x) || p(x_s | x_t)), at the last step -log p(x | x_t) (Ho et al., Eq. 5).

        The mean is detached, so only the variance gets a gradient. As in DiT, the last step treats data as 8-bit
        values in [-1, 1] (bins of 2/255), a convention without meaning for latents. The normal CDF is exact; the
        published code approximates it.
        """
        if not self.variance_groups or self._channels is None:
            return {}
        t = t if isinstance(t, Tensor) else x.new_full((len(x),), t)
        s = per_sample(t) + 1 / self.num_timesteps
        c = x.shape[1]
        frozen = torch.cat([prediction[:, :c].detach(), prediction[:, c:]], dim=1)
        mean, log_variance = self.reverse_step(frozen, x_t, t, s)
        true_mean, true_log_variance = self.posterior(x, x_t, t, s)
        kl = kl_divergence(true_mean, true_log_variance, mean, log_variance)
        likelihood = discretised_log_likelihood(x, mean, log_variance)
        bound = torch.where(self.step(s) == 0, -likelihood, kl) / math.log(2)  # nats -> bits
        means = self._channels.means(bound)
        return {name: means[name] for name in self.variance_groups}


def _log(variance, floor: float = 0.0):
    return variance.clamp(min=floor).log() if isinstance(variance, Tensor) else math.log(max(variance, floor))


def _like(t, s, value):
    """Cast a float64 result to the dtype of t or s, whichever is a tensor."""
    time = t if isinstance(t, Tensor) else s
    return value.to(time.dtype) if isinstance(time, Tensor) else value


def kl_divergence(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """Return KL(N(mean1, variance1) || N(mean2, variance2)) elementwise, in nats."""
    ratio = torch.exp(log_variance1 - log_variance2)
    distance = (mean1 - mean2).square() * torch.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio + distance - 1)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the log-probability of the bin of x under N(mean, variance), elementwise, in nats.

    Bins are those of 8-bit data in [-1, 1]: 2/255 wide, the first and last unbounded (Ho et al., Eq. 13).
    """
    precision = torch.exp(-0.5 * log_variance)
    upper, lower = (0.5 * (1 + torch.erf((x - mean + h) * precision / math.sqrt(2))) for h in (1 / 255, -1 / 255))
    mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return mass.clamp(min=1e-12).log()
