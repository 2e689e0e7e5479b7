"""The variance-preserving diffusion path in continuous time."""

import math

import torch

from redi.core.processes import per_sample, register
from redi.core.processes.interpolant import Interpolant, LossOn, Prediction


@register
class VP(Interpolant):
    """The path of the VP-SDE (Song et al., arXiv 2011.13456, Eq. 29), with s = 1 - t.

        alpha = exp(-s^2 (beta_max - beta_min) / 4 - s beta_min / 2),   sigma^2 = 1 - alpha^2

    At t = 0, alpha is 0.0066 rather than 0. At t = 1 the derivative of sigma is infinite, so times end at 1 - margin.

    Args:
        beta_min, beta_max: ends of the linear noise schedule beta(s).
        prediction, reversed, margin, loss_on, velocity_clamp: see `Interpolant`.

    Examples:
        >>> process = VP()
        >>> round(process.alpha(0.5) ** 2 + process.sigma(0.5) ** 2, 6), round(process.alpha(0.0), 4)
        (1.0, 0.0066)
        >>> process.t_range()
        (0.0, 0.999)
    """

    starts_in_pure_noise = False
    ends_with_a_pole = True

    def __init__(
        self, *, beta_min: float = 0.1, beta_max: float = 20.0, prediction: Prediction = "velocity",
        reversed: bool = False, margin: float = 1e-3, loss_on: LossOn = "prediction", velocity_clamp: float = 0.05,
    ):  # fmt: skip
        super().__init__(
            prediction=prediction, reversed=reversed, margin=margin, loss_on=loss_on, velocity_clamp=velocity_clamp
        )
        if not 0 < beta_min <= beta_max:
            values = f"VP.beta_min = {beta_min}, VP.beta_max = {beta_max}"
            raise ValueError(f"{values}: must satisfy 0 < beta_min <= beta_max")
        self.beta_min, self.beta_max = beta_min, beta_max

    def alpha(self, t):
        log_alpha = self._log_alpha(t)
        return torch.exp(log_alpha) if isinstance(log_alpha, torch.Tensor) else math.exp(log_alpha)

    def sigma(self, t):
        log_alpha = self._log_alpha(t)  # expm1, because 1 - alpha^2 cancels near t = 1
        square = -torch.expm1(2 * log_alpha) if isinstance(log_alpha, torch.Tensor) else -math.expm1(2 * log_alpha)
        return square**0.5

    def d_alpha(self, t):
        return self._half_beta(t) * self.alpha(t)

    def d_sigma(self, t):
        return -self._half_beta(t) * self.alpha(t) ** 2 / self.sigma(t)

    def _log_alpha(self, t):
        s = 1 - per_sample(t)
        return -(s**2) * (self.beta_max - self.beta_min) / 4 - s * self.beta_min / 2

    def _half_beta(self, t):
        return (self.beta_min + (1 - per_sample(t)) * (self.beta_max - self.beta_min)) / 2
