"""Continuous paths with known derivatives: the four predictions of SiT and the conversions between them."""

from abc import abstractmethod
from typing import Literal, get_args

from torch import Tensor

from redi.core.processes import Process
from redi.runtime.ranges import check_choice

Prediction = Literal["velocity", "noise", "score", "data"]
LossOn = Literal["prediction", "velocity"]


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
        loss_on: what the squared error compares. 'velocity', for networks that predict the data: both the prediction
            and the target are converted to velocities, so errors near the data weigh more (JiT, arXiv 2511.13720).
        velocity_clamp: with loss_on = 'velocity', sigma is replaced by max(sigma, velocity_clamp) where the velocity
            divides by it. On the linear path v = (x - x_t) / max(1 - t, 0.05), as in JiT, and the loss is
            `|prediction - x|^2 / max(1 - t, 0.05)^2`. `velocity` and so the ODE samplers divide by the same number, as
            in the published code, and leave about 2 % of the noise; bind 1e-3 in sampling to remove it.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> import torch
        >>> x, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        >>> for prediction in ("velocity", "noise", "score", "data"):
        ...     process = FlowMatching(prediction=prediction)
        ...     x_t, target = process.corrupt(x, noise, 0.5)
        ...     assert torch.allclose(process.velocity(target, x_t, 0.5), x - noise, atol=1e-5)
    """

    def __init__(
        self, *, prediction: Prediction = "velocity", reversed: bool = False, margin: float = 1e-3,
        loss_on: LossOn = "prediction", velocity_clamp: float = 0.05,
    ):  # fmt: skip
        name = type(self).__name__
        check_choice(f"{name}.prediction", prediction, get_args(Prediction))
        if not 0 < margin < 0.5:
            raise ValueError(f"{name}.margin = {margin}: must be in (0, 0.5)")
        check_choice(f"{name}.loss_on", loss_on, get_args(LossOn))
        if loss_on == "velocity" and prediction != "data":
            what = f"{name}.loss_on = 'velocity' with {name}.prediction = {prediction!r}"
            raise ValueError(f"{what}: set prediction to 'data', or loss_on to 'prediction'")
        if not 0 < velocity_clamp < 1:
            raise ValueError(f"{name}.velocity_clamp = {velocity_clamp}: must be in (0, 1)")
        self.prediction, self.reversed, self.margin = prediction, reversed, margin
        self.loss_on, self.velocity_clamp = loss_on, velocity_clamp

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
        error = super().error(prediction, x, noise, t)
        return -self._determinant(t) / self._clamped_sigma(t) * error if self.loss_on == "velocity" else error

    def velocity(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        if self.prediction == "velocity":
            return self._velocity(prediction, x_t)
        if self.loss_on == "velocity":
            data = self.clean(prediction, x_t, t)
            return (self.d_sigma(t) * x_t - self._determinant(t) * data) / self._clamped_sigma(t)
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

    def _clamped_sigma(self, t):
        sigma = self.sigma(t)
        return sigma.clamp(min=self.velocity_clamp) if isinstance(sigma, Tensor) else max(sigma, self.velocity_clamp)

    def _determinant(self, t):
        """Return the determinant of (x, noise) -> (x_t, v), which is negative because alpha / sigma grows with t."""
        return self.alpha(t) * self.d_sigma(t) - self.sigma(t) * self.d_alpha(t)
