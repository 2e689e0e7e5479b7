"""Continuous paths with known derivatives: the four predictions of SiT and the conversions between them."""

from abc import abstractmethod
from typing import Literal, get_args

from torch import Tensor

from redi.core.processes import Process

Prediction = Literal["velocity", "noise", "score", "data"]


class Interpolant(Process):
    """A path with known derivatives (Ma et al., arXiv 2401.08740; Albergo et al., arXiv 2303.08797).

    x_t = alpha x + sigma noise and v = alpha' x + sigma' noise are two linear equations in x and noise, so any one of
    velocity, noise, score and data determines the others. The conversions have poles: at t = 0 (alpha = 0) for noise
    and score, and at t = 1 (sigma = 0) for score, data, and paths with an infinite sigma'. `t_range` keeps a distance
    of `margin` from them.

    Args:
        prediction: what the network predicts. The paper's SiT predicts the velocity.
        reversed: True for networks whose time runs from data (0) to noise (1) and whose velocity is noise - data, as
            in REPA. The network then receives 1 - t, and the sign of its velocity is flipped.
        margin: distance from a pole, in units of t.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> import torch
        >>> x, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        >>> for prediction in ("velocity", "noise", "score", "data"):
        ...     process = FlowMatching(prediction=prediction)
        ...     x_t, target = process.corrupt(x, noise, 0.5)
        ...     assert torch.allclose(process.velocity(target, x_t, 0.5), x - noise, atol=1e-5)
    """

    def __init__(self, *, prediction: Prediction = "velocity", reversed: bool = False, margin: float = 1e-3):
        name = type(self).__name__
        if prediction not in get_args(Prediction):
            raise ValueError(f"{name}.prediction = {prediction!r}: must be 'velocity', 'noise', 'score' or 'data'")
        if not 0 < margin < 0.5:
            raise ValueError(f"{name}.margin = {margin}: must be in (0, 0.5)")
        self.prediction, self.reversed, self.margin = prediction, reversed, margin

    @abstractmethod
    def d_alpha(self, t):
        """Return the derivative of alpha."""

    @abstractmethod
    def d_sigma(self, t):
        """Return the derivative of sigma."""

    # The two possible poles of a path: alpha = 0 at t = 0, and an infinite sigma' at t = 1.
    starts_in_pure_noise = True
    ends_with_a_pole = False

    def t_range(self) -> tuple[float, float]:
        first = self.margin if self.prediction in ("noise", "score") and self.starts_in_pure_noise else 0.0
        last = 1 - self.margin if self.prediction in ("score", "data") or self.ends_with_a_pole else 1.0
        return first, last

    def model_time(self, t: Tensor) -> Tensor:
        return 1 - t if self.reversed else t

    def target(self, x: Tensor, noise: Tensor, t) -> Tensor:
        if self.prediction == "velocity":
            velocity = self.d_alpha(t) * x + self.d_sigma(t) * noise
            return -velocity if self.reversed else velocity
        if self.prediction == "noise":
            return noise
        return x if self.prediction == "data" else -noise / self.sigma(t)

    def error(self, prediction: Tensor, x: Tensor, noise: Tensor, t) -> Tensor:
        if self.prediction == "score":  # |sigma score + noise|^2 weights every t equally
            return self.sigma(t) * prediction[:, : x.shape[1]] + noise
        return super().error(prediction, x, noise, t)

    def velocity(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        if self.prediction == "velocity":
            return self._velocity(prediction, x_t)
        return self.d_alpha(t) * self.clean(prediction, x_t, t) + self.d_sigma(t) * self.noise(prediction, x_t, t)

    def clean(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        if self.prediction == "data":
            return prediction[:, : x_t.shape[1]]
        if self.prediction == "velocity":
            velocity, determinant = self._velocity(prediction, x_t), self._determinant(t)
            return (self.d_sigma(t) * x_t - self.sigma(t) * velocity) / determinant
        return (x_t - self.sigma(t) * self.noise(prediction, x_t, t)) / self.alpha(t)

    def noise(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        if self.prediction == "velocity":
            velocity, determinant = self._velocity(prediction, x_t), self._determinant(t)
            return (self.alpha(t) * velocity - self.d_alpha(t) * x_t) / determinant
        prediction = prediction[:, : x_t.shape[1]]
        if self.prediction == "noise":
            return prediction
        if self.prediction == "score":
            return -self.sigma(t) * prediction
        return (x_t - self.alpha(t) * prediction) / self.sigma(t)

    def _velocity(self, prediction: Tensor, x_t: Tensor) -> Tensor:
        velocity = prediction[:, : x_t.shape[1]]
        return -velocity if self.reversed else velocity

    def _determinant(self, t):
        """Return the determinant of (x, noise) -> (x_t, v), which is negative because alpha / sigma grows with t."""
        return self.alpha(t) * self.d_sigma(t) - self.sigma(t) * self.d_alpha(t)
