"""The log-likelihood of data under a trained model, by the probability-flow ODE."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.processes import Process
from redi.core.samplers import Denoise
from redi.core.samplers.grid import through_kinks
from redi.core.samplers.ode import ADAPTIVE, EVALUATIONS_PER_STEP, equal_times, integrate
from redi.runtime.randomness import mix_seeds


@dataclass
class Likelihood:
    """The result of `log_likelihood`, per sample.

    Examples:
        >>> nats = torch.tensor([-math.log(2) * 12], dtype=torch.float64)
        >>> Likelihood(nats, -nats / (12 * math.log(2)), 100, torch.zeros(1, 3, 2, 2)).bits_per_dimension
        tensor([1.], dtype=torch.float64)
    """

    log_likelihood: Tensor  # (N,) float64, in nats: log-density of the joint state
    bits_per_dimension: Tensor  # (N,) float64: -log2 density / (C H W), without the padding of vectors
    num_evaluations: int  # forward passes, each with a backward pass per probe (exact: per dimension)
    noise: Tensor  # (N, C, H, W): the state at the first t, where the ODE ends


def log_likelihood(
    denoise: Denoise, process: Process, x: Tensor, *, method: str = "dopri5", num_steps: int | None = None,
    rtol: float = 1e-5, atol: float = 1e-5, num_probes: int = 1, exact: bool = False,
    probes: Sequence[Tensor] | Tensor | None = None, seed: int = 0, first_index: int = 0,
    channels: Channels | None = None,
) -> Likelihood:  # fmt: skip
    """Return log p(x) of data x (N, C, H, W), by the instantaneous change of variables from data to noise.

        log p(x) = log N(x_first; 0, sigma(first)^2) - integral of div v(x_t, t) dt,  t from first to last

    Sources: Chen et al., arXiv 1806.07366; Song et al., arXiv 2011.13456, Eq. 39. Hutchinson's estimator of the
    divergence is unbiased (Grathwohl et al., arXiv 1810.01367). Its probes stay fixed along a trajectory. If `t_range`
    has a margin of 1e-3, treating its ends as data and noise costs about 1e-3 nats per dimension. The density is that
    of the joint state: compare only models with the same codec, without guidance.

        run = redi.load("runs/digits")
        channels = run.codec.channels
        process = run.process.for_channels(channels, run.codec.device)
        x = run.codec.encode(images)  # images (N, 3, S, S) uint8, labels (N,), both on the device of the run
        denoise = redi.guidance.guided(run.model, [], channels, labels, run.num_classes, process.model_time)
        log_likelihood(denoise, process, x, channels=channels).bits_per_dimension

    Args:
        denoise: (x_t, t) -> prediction, differentiable in x_t; samples must not affect one another.
        process: the continuous process that the network was trained with.
        method: an adaptive method ('dopri5', 'dopri8', 'bosh3', 'adaptive_heun'). With num_steps, a fixed-step method
            ('euler', 'midpoint', 'heun3', 'rk4').
        rtol, atol: relative and absolute error tolerance of an adaptive step.
        num_probes: Rademacher probes per sample.
        exact: compute the exact trace with C H W backward passes, for small dimensions.
        probes: probes to use instead of random ones, each (N, C, H, W), drawn with mean 0 and identity covariance.
        seed, first_index: the probes of sample i depend on (seed, first_index + i) alone, not on the batch.
        channels: the channel groups of x, required if it holds vectors (see `Channels`): their padding stays 0 and
            counts neither in the density nor in the dimensions.

    Raises ValueError for a discrete process, a method that does not match num_steps, probes of another shape, or as
    `integrate` does.

    Examples:
        For normal data and its exact velocity, the density is the normal one.

        >>> from redi.core.processes import FlowMatching
        >>> generator = torch.manual_seed(0)
        >>> x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
        >>> def denoise(x, t):  # v = (alpha alpha' + sigma sigma') / (alpha^2 + sigma^2) x
        ...     return (2 * t - 1) / (t**2 + (1 - t) ** 2) * x
        >>> exact = torch.distributions.Normal(0, 1).log_prob(x).sum(dim=(1, 2, 3))
        >>> torch.allclose(log_likelihood(denoise, FlowMatching(), x).log_likelihood, exact, atol=1e-3)
        True
    """
    if process.num_timesteps is not None:
        what = f"log_likelihood needs a velocity, but {type(process).__name__} has discrete timesteps"
        raise ValueError(f"{what}: use a model trained with a continuous process")
    methods = ADAPTIVE if num_steps is None else EVALUATIONS_PER_STEP
    if method not in methods:
        raise ValueError(f"method = {method!r} with num_steps = {num_steps}: must be one of {', '.join(methods)}")
    if num_probes < 1 or (num_steps is not None and num_steps < 1):
        raise ValueError(f"num_probes = {num_probes}, num_steps = {num_steps}: must be at least 1")
    counted = torch.ones_like(x[:1]) if channels is None else channels.trim(torch.ones_like(x[:1]))  # 0 in padding
    if getattr(denoise, "carries_features", False):
        what = "log_likelihood: the model predicts features and receives them back (PredictedFeatures)"
        raise ValueError(f"{what}, so its velocity is not a function of x and t: use a model without")
    if probes is None:
        probes = _unit_vectors(x, counted) if exact else _rademacher(x, num_probes, seed, first_index)
    elif exact or not len(probes) or any(probe.shape != x.shape for probe in probes):
        shape = tuple(x.shape)
        raise ValueError(f"log_likelihood: probes must be tensors of shape {shape}, or None if exact = True")
    probes = [probe.to(x) * counted for probe in probes]
    # Unit vectors sum to the trace; random probes average to it.
    weight = 1.0 if exact else 1 / len(probes)
    num_evaluations = 0

    def slope(state: tuple[Tensor, ...], t: float) -> tuple[Tensor, ...]:
        nonlocal num_evaluations
        num_evaluations += 1
        with torch.enable_grad():
            x_t = state[0].detach().requires_grad_()
            velocity = process.velocity(denoise(x_t, t), x_t, t) * counted
            divergence = torch.zeros_like(state[1])
            for k, probe in enumerate(probes):
                (gradient,) = torch.autograd.grad(velocity, x_t, probe, retain_graph=k + 1 < len(probes))
                divergence += weight * (gradient * probe).sum(dim=(1, 2, 3))
        return velocity.detach(), divergence

    first, last = process.t_range()
    kinks, times = process.kinks(), [last, first]
    if num_steps is not None:
        times = through_kinks(equal_times(last, first, num_steps), kinks, f"log_likelihood: num_steps = {num_steps}")
    solver: dict[str, Any] = {"method": method, "kinks": kinks, "rtol": rtol, "atol": atol}
    with torch.no_grad():
        noise, integral = integrate(slope, (x, x.new_zeros(len(x))), times, **solver)
    sigma = torch.as_tensor(process.sigma(first), dtype=torch.float64, device=x.device)
    log_normal = -0.5 * (noise.double() / sigma).square() - sigma.log() - 0.5 * math.log(2 * math.pi)
    # The integral runs backwards, from last to first, so it already has the minus sign.
    log_p = (log_normal * counted).sum(dim=(1, 2, 3)) + integral.double()
    return Likelihood(log_p, -log_p / (int(counted.sum()) * math.log(2)), num_evaluations, noise)


def _rademacher(x: Tensor, num_probes: int, seed: int, first_index: int) -> list[Tensor]:
    generators = [torch.Generator().manual_seed(mix_seeds(seed, first_index + i)) for i in range(len(x))]
    signs = [torch.stack([torch.randint(2, x.shape[1:], generator=g) for g in generators]) for _ in range(num_probes)]
    return [2 * sign - 1 for sign in signs]


def _unit_vectors(x: Tensor, counted: Tensor) -> list[Tensor]:
    """Return a tensor (N, C, H, W) for each dimension that counts, a unit vector that is the same for every sample."""
    rows = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)[counted.flatten() > 0]
    return [row.view(1, *x.shape[1:]).expand_as(x) for row in rows]
