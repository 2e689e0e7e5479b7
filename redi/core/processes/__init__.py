"""Processes: how data turns into noise, what the network predicts, and the conversions between predictions."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.registry import Registry, discover
from redi.core.renamed import keep_old_names


class Process(ABC):
    """A Gaussian path x_t = alpha(t) x + sigma(t) noise with t = 0 pure noise and t = 1 data (paper, Eq. 5).

    A component implements `alpha`, `sigma`, `target`, `velocity`, `clean` and `noise`, or derives from `Interpolant`.
    It may override `for_channels`, `t_range`, `draw_times`, `model_time`, `error` and `variational_bound`, and, if the
    times of the groups differ, `group_times`, `slope`, `kinks` and `between` (see `clocked.Clocked`). A discrete
    process also defines `step`, `time` and `reverse_step` (see `DDPM`). Public attributes are settings and must be JSON
    values.

    All methods accept t as a float or as a tensor: (N,) or (N, 1, 1, 1) with one time per sample, or (N, C, 1, 1) with
    one time per channel. With a tensor t, results broadcast against x. If a prediction has more than C channels (see
    `variance_groups`), the conversions use the first C.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> process, t = FlowMatching(), 0.25
        >>> x, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        >>> x_t, velocity = process.corrupt(x, noise, t)
        >>> torch.allclose(x_t, process.alpha(t) * x + process.sigma(t) * noise)
        True
        >>> torch.allclose(process.clean(velocity, x_t, t), x, atol=1e-5)
        True
    """

    # Number of timesteps of a discrete process. None: the process is continuous and differentiable in t.
    num_timesteps: int | None = None
    # The channel groups with a second output per channel, which follows the first C channels of the prediction.
    variance_groups: tuple[str, ...] = ()
    # The first three exist in discrete processes only, the last two in processes with known derivatives only.
    step: Callable[[Any], Any]
    time: Callable[[int], float]
    reverse_step: Callable[..., tuple[Tensor, Tensor]]
    d_alpha: Callable[[Any], Any]
    d_sigma: Callable[[Any], Any]

    def for_channels(self, channels: Channels, device: torch.device | str = "cpu") -> "Process":
        """Return this process for a joint state and a device. Raises ValueError if a setting names an unknown group."""
        return self

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        keep_old_names(cls, interval="t_range", network_time="model_time")

    @abstractmethod
    def alpha(self, t):
        """Return the coefficient of the data in x_t. Call `per_sample(t)` first: (N,) becomes (N, 1, 1, 1)."""

    @abstractmethod
    def sigma(self, t):
        """Return the standard deviation of the noise in x_t."""

    def t_range(self) -> tuple[float, float]:
        """Return the first and last t at which every conversion is finite."""
        return 0.0, 1.0

    def draw_times(self, shape: tuple[int, ...], device: torch.device | str, uniforms: Tensor | None = None) -> Tensor:
        """Draw training times, uniform over `t_range`.

        `uniforms` are numbers in [0, 1) of this shape, by default random ones. Larger numbers map to later times.
        """
        first, last = self.t_range()
        uniforms = torch.rand(shape, device=device) if uniforms is None else checked_uniforms(uniforms, shape, device)
        return first + (last - first) * uniforms

    def model_time(self, t: Tensor) -> Tensor:
        """Return the time input of the network for t (N,): (N,), or (N, groups) if the times of the groups differ."""
        return t

    interval, network_time = t_range, model_time  # names in version 0.1

    def group_times(self, channels: Channels, t: float) -> dict[str, float]:
        """Return {group: its own time} at t."""
        return dict.fromkeys(channels, t)

    def own_time(self, t):
        """Return the own times of the channels at t: t itself, or (N or 1, C, 1, 1)."""
        return t

    def slope(self, t):
        """Return the derivative of the own times by t: 1.0, or (1, C, 1, 1)."""
        return 1.0

    def kinks(self) -> tuple[float, ...]:
        """Return the times within `t_range` at which a slope jumps, in order. Samplers end a step at each."""
        return ()

    def between(self, t: float, t_next: float) -> "Process":
        """Return the process for a step from t to t_next, with the mean slope of this step.

        A velocity times t_next - t then moves every group by exactly the own time that passes in the step.
        """
        return self

    @abstractmethod
    def target(self, x: Tensor, noise: Tensor, t) -> Tensor:
        """Return the regression target of the network, (N, C, H, W)."""

    def mix(self, x: Tensor, noise: Tensor, t) -> Tensor:
        """Return x_t = alpha(t) x + sigma(t) noise, (N, C, H, W)."""
        t = per_sample(t)
        return self.alpha(t) * x + self.sigma(t) * noise

    def corrupt(self, x: Tensor, noise: Tensor, t) -> tuple[Tensor, Tensor]:
        """Return x_t and the target of the prediction, both (N, C, H, W)."""
        return self.mix(x, noise, t), self.target(x, noise, t)

    def error(self, prediction: Tensor, x: Tensor, noise: Tensor, t) -> Tensor:
        """Return the error whose square is the loss, (N, C, H, W)."""
        return prediction[:, : x.shape[1]] - self.target(x, noise, t)

    def variational_bound(self, prediction: Tensor, x: Tensor, x_t: Tensor, t) -> dict[str, Tensor]:
        """Return {group: (N,) bits per dimension}, the loss that trains learned variances; {} without them."""
        return {}

    @abstractmethod
    def velocity(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        """Return dx_t/dt along the probability-flow ODE. Discrete processes raise ValueError."""

    @abstractmethod
    def clean(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        """Return the expected data E[x | x_t]."""

    @abstractmethod
    def noise(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        """Return the expected noise E[noise | x_t]. The score is -noise / sigma(t)."""

    def provenance(self) -> dict:
        """Return name and settings as JSON values."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"name": type(self).__name__, **settings}


def per_sample(t):
    """Reshape t from (N,) to (N, 1, 1, 1), which broadcasts against x. Return other values unchanged."""
    return t[:, None, None, None] if isinstance(t, Tensor) and t.ndim == 1 else t


def checked_uniforms(uniforms: Tensor, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Move `uniforms` to the device. Raises ValueError for another shape or values outside [0, 1)."""
    if tuple(uniforms.shape) != tuple(shape) or not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError(f"uniforms must have shape {tuple(shape)} and values in [0, 1), got {tuple(uniforms.shape)}")
    return uniforms.to(device)


processes = Registry("processes", Process)
register = processes.register
discover(__name__, processes)
