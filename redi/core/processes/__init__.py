"""Processes: how data turns into noise, what the network predicts, and the conversions; the registry of them."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.registry import Registry, discover
from redi.core.renamed import keep_old_names


class Process(ABC):
    """A Gaussian path x_t = alpha(t) x + sigma(t) noise with t = 0 pure noise and t = 1 data.

    A component implements `alpha`, `sigma`, `target`, `velocity`, `clean` and `noise`, or derives from `Interpolant`.
    It may override `for_channels`, `t_range`, `draw_times`, `model_time`, `error` and `variational_bound`. A discrete
    one also has `step`, `time` and `reverse_step`, as DDPM. Attributes without underscore are settings, as JSON.

    All methods take t as a float or as a tensor: (N,) or (N, 1, 1, 1), one time for each sample, or (N, C, 1, 1), one
    for each channel. What they return at a tensor broadcasts against x. Of a prediction with more than the C channels
    of x (see `variance_groups`), the conversions read the first C.
    """

    # The timesteps of a discrete process; None for a continuous one, whose derivatives in t exist.
    num_timesteps: int | None = None
    # The channel groups for which the network gives a second value per channel, after the first C.
    variance_groups: tuple[str, ...] = ()

    def for_channels(self, channels: Channels, device: torch.device | str = "cpu") -> "Process":
        """This process for such a joint state, on a device. Raises ValueError where a setting names no group of it."""
        return self

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        keep_old_names(cls, interval="t_range", network_time="model_time")

    @abstractmethod
    def alpha(self, t):
        """What multiplies the data in x_t. Use `per_sample(t)`, so that t (N,) gives (N, 1, 1, 1)."""

    @abstractmethod
    def sigma(self, t):
        """The standard deviation of the noise in x_t."""

    def t_range(self) -> tuple[float, float]:
        """The first and last t at which every conversion is finite."""
        return 0.0, 1.0

    def draw_times(self, shape: tuple[int, ...], device: torch.device | str, uniforms: Tensor | None = None) -> Tensor:
        """Training times, uniform over `t_range`.

        Args:
            uniforms: numbers in [0, 1) of this shape, whose order the times keep; default: torch's default generator.
        """
        first, last = self.t_range()
        uniforms = torch.rand(shape, device=device) if uniforms is None else checked_uniforms(uniforms, shape, device)
        return first + (last - first) * uniforms

    def model_time(self, t: Tensor) -> Tensor:
        """The network's time input at t (N,): (N,), or (N, groups) where the groups' times differ."""
        return t

    interval, network_time = t_range, model_time  # their names in version 0.1

    @abstractmethod
    def target(self, x: Tensor, noise: Tensor, t) -> Tensor:
        """What the network should predict, (N, C, H, W)."""

    def mix(self, x: Tensor, noise: Tensor, t) -> Tensor:
        """x_t (N, C, H, W)."""
        t = per_sample(t)
        return self.alpha(t) * x + self.sigma(t) * noise

    def corrupt(self, x: Tensor, noise: Tensor, t) -> tuple[Tensor, Tensor]:
        """-> x_t (N, C, H, W) and the target of the network's prediction (N, C, H, W)."""
        return self.mix(x, noise, t), self.target(x, noise, t)

    def error(self, prediction: Tensor, x: Tensor, noise: Tensor, t) -> Tensor:
        """What is squared in the loss, (N, C, H, W)."""
        return prediction[:, : x.shape[1]] - self.target(x, noise, t)

    def variational_bound(self, prediction: Tensor, x: Tensor, x_t: Tensor, t) -> dict[str, Tensor]:
        """{group: (N,) bits per dimension} for the `variance_groups`: what trains a learned variance."""
        return {}

    @abstractmethod
    def velocity(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        """dx_t/dt along the probability-flow ODE; of a continuous process only."""

    @abstractmethod
    def clean(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        """The expected data E[x | x_t]."""

    @abstractmethod
    def noise(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        """The expected noise E[noise | x_t]; the score is -noise / sigma(t)."""

    def provenance(self) -> dict:
        """Name and settings, as JSON."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"name": type(self).__name__, **settings}


def per_sample(t):
    """(N,) -> (N, 1, 1, 1), which broadcasts against x; anything else as it is."""
    return t[:, None, None, None] if isinstance(t, Tensor) and t.ndim == 1 else t


def checked_uniforms(uniforms: Tensor, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    if tuple(uniforms.shape) != tuple(shape) or not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError(f"uniforms must have shape {tuple(shape)} and values in [0, 1), got {tuple(uniforms.shape)}")
    return uniforms.to(device)


processes = Registry("processes", Process)
register = processes.register
discover(__name__, processes)
