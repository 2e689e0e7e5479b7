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


@register
class DDPM(Process):
    """T steps of noise with variances beta_1 ... beta_T, linear from beta_min to beta_max; the network predicts the
    noise (Ho et al., arXiv 2006.11239).

    Timestep k = 0 ... T - 1 of the literature, the network's time input, is t = 1 - (k + 1) / T here, and t = 1 is the
    data. Methods count points from the data: `step(t)` = k + 1 and `time(k + 1)` = t. Between the points nothing is
    defined: the nearest is taken.

    Args:
        num_timesteps: T.
        beta_min, beta_max: of the first and the last step.
        learned_variance: the channel groups for which the network learns the variance of the reverse step, by a
            second value per channel that interpolates between the smallest and the largest sensible log-variance
            (Nichol & Dhariwal, arXiv 2102.09672, Eq. 15), trained by the variational bound (Eq. 16). None: every group,
            as in DiT; (): none.
        variance: of groups without a learned one: 'small' (of the posterior given the data) or 'large' (beta).
    """

    def __init__(
        self, num_timesteps: int = 1000, *, beta_min: float = 1e-4, beta_max: float = 0.02,
        learned_variance: Sequence[str] | None = None, variance: Literal["small", "large"] = "small",
    ):  # fmt: skip
        if num_timesteps < 2:
            raise ValueError(f"DDPM.num_timesteps = {num_timesteps}: at least 2 are needed")
        if not 0 < beta_min <= beta_max < 1:
            raise ValueError(f"DDPM.beta_min = {beta_min}, DDPM.beta_max = {beta_max}: 0 < beta_min <= beta_max < 1")
        if variance not in ("small", "large"):
            raise ValueError(f"DDPM.variance = {variance!r}: it is 'small' or 'large'")
        learned_variance = (learned_variance,) if isinstance(learned_variance, str) else learned_variance
        self.num_timesteps, self.beta_min, self.beta_max = num_timesteps, beta_min, beta_max
        self.learned_variance = None if learned_variance is None else tuple(learned_variance)
        self.variance = variance
        self._channels: Channels | None = None
        # Entry k + 1 is timestep k; entry 0 is the data.
        table = np.concatenate([[1.0], np.cumprod(1 - self.betas.numpy())])
        self._table = torch.from_numpy(table)  # for tensors, and on their device
        self._alphas_cumprod = table.tolist()  # for floats, which no device has to be asked for

    def for_channels(self, channels: Channels, device: torch.device | str = "cpu") -> "DDPM":
        if unknown := [name for name in self.learned_variance or () if name not in channels]:
            raise ValueError(f"DDPM.learned_variance names {unknown}: the joint state has {', '.join(channels)}")
        bound = copy.copy(self)
        bound._channels, bound._table = channels, self._table.to(device)
        return bound

    @property
    def betas(self) -> Tensor:
        """(T,) float64 on the CPU: entry k is the variance of timestep k's noise; alpha^2 is cumprod(1 - betas)."""
        return torch.from_numpy(np.linspace(self.beta_min, self.beta_max, self.num_timesteps, dtype=np.float64))

    @property
    def variance_groups(self) -> tuple[str, ...]:
        learned = self.learned_variance
        return tuple(name for name in self._channels or () if learned is None or name in learned)

    def step(self, t):
        """k + 1 at t: 0 for the data, T for the most noise. An int for a float, a long tensor for a tensor."""
        if isinstance(t, Tensor):
            return ((1 - t) * self.num_timesteps).round().long().clamp(0, self.num_timesteps)
        return min(max(round((1 - t) * self.num_timesteps), 0), self.num_timesteps)

    def time(self, step: int) -> float:
        """The t of k + 1."""
        return 1 - step / self.num_timesteps

    def draw_times(self, shape: tuple[int, ...], device: torch.device | str, uniforms: Tensor | None = None) -> Tensor:
        if uniforms is None:
            steps = torch.randint(1, self.num_timesteps + 1, shape, device=device)
        else:  # 0 is the first timestep of sampling, T - 1: the times keep the order of the uniforms
            passed = (checked_uniforms(uniforms, shape, device) * self.num_timesteps).long()
            steps = self.num_timesteps - passed.clamp(max=self.num_timesteps - 1)
        return 1 - steps / self.num_timesteps

    def model_time(self, t: Tensor) -> Tensor:
        return (self.step(t) - 1).clamp(min=0).to(t.dtype)

    def alpha(self, t):
        return _like(t, t, self.alpha_cumprod(t) ** 0.5)

    def sigma(self, t):
        return _like(t, t, (1 - self.alpha_cumprod(t)) ** 0.5)

    def alpha_cumprod(self, t):
        """The share of the data in the variance of x_t, in float64: 1 - this is 1e-4 at the first step."""
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
            "DDPM has discrete timesteps and so no velocity: sample with samplers.Ancestral or samplers.DDIM, or train "
            "with processes.VP, its limit for many steps"
        )

    def reverse_step(self, prediction: Tensor, x_t: Tensor, t: float | Tensor, s: float | Tensor):
        """p(x_s | x_t) for a step from t to the less noisy s: mean and log-variance, both (N, C, H, W).

        For steps that leave out timesteps the variances are those of the shortened process ("respacing"). Raises
        ValueError where the prediction has another number of channels than C and the learned variances need.
        """
        data = self.clean(prediction, x_t, t)
        mean, low = self.posterior(data, x_t, t, s)
        beta = 1 - self.alpha_cumprod(t) / self.alpha_cumprod(s)
        high = _like(t, s, _log(beta)) + torch.zeros_like(x_t)
        low = low + torch.zeros_like(x_t)
        log_variance = low if self.variance == "small" else high
        if learned := self._learned_channels(prediction, x_t):
            share = (prediction[:, x_t.shape[1] :] + 1) / 2
            # A list as an index would be copied to the device, and waited for.
            index = torch.cat([torch.arange(first, first + 1, device=x_t.device) for first in learned])
            chosen = share * high.index_select(1, index) + (1 - share) * low.index_select(1, index)
            log_variance = log_variance.index_copy(1, index, chosen)
        return mean, log_variance

    def _learned_channels(self, prediction: Tensor, x_t: Tensor) -> list[int]:
        """The channels of x for which the prediction holds a second value, in the order of those values."""
        c = x_t.shape[1]
        if self.learned_variance is None:
            learned = list(range(c))
        elif self._channels is None and self.learned_variance:
            raise ValueError("DDPM with learned_variance for named groups: call for_channels(channels) first")
        else:
            learned = [i for name in self.variance_groups for i in range(c)[self._channels.slice(name)]]
        if prediction.shape[1] != c + len(learned):
            needed = f"{c} of the noise and {len(learned)} of learned variances are needed"
            setting = f"DDPM.learned_variance = {self.learned_variance!r}, () is none"
            raise ValueError(f"the prediction has {prediction.shape[1]} channels, but {needed}: {setting}")
        return learned

    def posterior(self, data: Tensor, x_t: Tensor, t, s):
        """q(x_s | x_t, data): mean (N, C, H, W) and log-variance. (Ho et al., Eq. 7)

        At the last step, onto the data, the variance is 0; its logarithm is taken from the step before (as usual).
        """
        at_t, at_s = self.alpha_cumprod(t), self.alpha_cumprod(s)
        beta = 1 - at_t / at_s
        of_data = _like(t, s, at_s**0.5 * beta / (1 - at_t))
        of_x_t = _like(t, s, (1 - beta) ** 0.5 * (1 - at_s) / (1 - at_t))
        first, second = self._alphas_cumprod[1:3]
        smallest = (1 - second / first) * (1 - first) / (1 - second)  # of the second step, in place of the first's 0
        log_variance = _log(beta * (1 - at_s) / (1 - at_t), floor=smallest)
        return of_data * data + of_x_t * x_t, _like(t, s, log_variance)

    def variational_bound(self, prediction: Tensor, x: Tensor, x_t: Tensor, t) -> dict[str, Tensor]:
        """KL(q(x_s | x_t, x) || p(x_s | x_t)) of the next step, or -log p(x | x_t) at the last (Ho et al., Eq. 5).

        The mean is held fixed, so that only the variance learns from it. As in DiT, the last step takes data in
        [-1, 1] with bins of 2/255, a mere convention for latents. Its normal CDF is exact (published: approximate).
        """
        if not self.variance_groups:
            return {}
        t = t if isinstance(t, Tensor) else x.new_full((len(x),), t)
        s = per_sample(t) + 1 / self.num_timesteps
        c = x.shape[1]
        frozen = torch.cat([prediction[:, :c].detach(), prediction[:, c:]], dim=1)
        mean, log_variance = self.reverse_step(frozen, x_t, t, s)
        true_mean, true_log_variance = self.posterior(x, x_t, t, s)
        kl = kl_divergence(true_mean, true_log_variance, mean, log_variance)
        likelihood = discretised_log_likelihood(x, mean, log_variance)
        bound = torch.where(self.step(s) == 0, -likelihood, kl) / math.log(2)
        groups = self._channels.split(bound)
        return {name: groups[name].mean(dim=(1, 2, 3)) for name in self.variance_groups}


def _log(variance, floor: float = 0.0):
    return variance.clamp(min=floor).log() if isinstance(variance, Tensor) else math.log(max(variance, floor))


def _like(t, s, value):
    """What was computed in float64, in the type of the time that is a tensor."""
    time = t if isinstance(t, Tensor) else s
    return value.to(time.dtype) if isinstance(time, Tensor) else value


def kl_divergence(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, variance1) || N(mean2, variance2)) elementwise, in nats."""
    ratio = torch.exp(log_variance1 - log_variance2)
    distance = (mean1 - mean2).square() * torch.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio + distance - 1)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of the mass that N(mean, variance) puts into the bin of x, elementwise, in nats.

    Bins as of 8-bit data in [-1, 1]: 2/255 wide, the first and the last open (Ho et al., arXiv 2006.11239, Eq. 13).
    """
    precision = torch.exp(-0.5 * log_variance)
    upper, lower = (0.5 * (1 + torch.erf((x - mean + h) * precision / math.sqrt(2))) for h in (1 / 255, -1 / 255))
    mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return mass.clamp(min=1e-12).log()
