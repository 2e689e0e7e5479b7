"""How likely a trained model holds given data: log p(x) by the probability-flow ODE."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise
from redi.core.samplers.ode import ADAPTIVE, EVALUATIONS_PER_STEP, integrate
from redi.runtime.randomness import mix_seeds


@dataclass
class Likelihood:
    """What `log_likelihood` found, per sample."""

    log_likelihood: Tensor  # (N,) float64, nats: the log-density of the joint state, in its own units
    bits_per_dimension: Tensor  # (N,) float64, -log2 density / (C H W)
    num_evaluations: int  # of the network, each with a backward pass per probe (or per dimension, where exact)
    noise: Tensor  # (N, C, H, W), the state at the first t, in which the ODE ends


def log_likelihood(
    denoise: Denoise, process: Process, x: Tensor, *, method: str = "dopri5", num_steps: int | None = None,
    rtol: float = 1e-5, atol: float = 1e-5, num_probes: int = 1, exact: bool = False,
    probes: Sequence[Tensor] | Tensor | None = None, seed: int = 0, first_index: int = 0,
) -> Likelihood:  # fmt: skip
    """log p(x) of data x (N, C, H, W), by the instantaneous change of variables from data to noise.

        log p(x) = log N(x_first; 0, sigma(first)^2) - integral of div v(x_t, t) dt,  t from first to last

    (Chen et al., arXiv 1806.07366; Song et al., arXiv 2011.13456, Eq. 39.) Hutchinson's probes estimate the divergence
    without bias (Grathwohl et al., arXiv 1810.01367) and stay the same along a trajectory. Data is taken for the state
    at the last t, and that at the first t for noise alone: an error of about 1e-3 nats per dimension where `t_range`
    has a margin of 1e-3. The density is that of the joint state: compare models of one codec, without guidance.

        run = redi.load("runs/digits")
        channels = run.codec.channels
        process = run.process.for_channels(channels, run.codec.device)
        x = run.codec.encode(images)  # images (N, 3, S, S) uint8, labels (N,), both on the run's device
        denoise = redi.guidance.guided(run.model, [], channels, labels, run.num_classes, process.model_time)
        log_likelihood(denoise, process, x).bits_per_dimension

    Args:
        denoise: (x_t, t) -> prediction, differentiable in x_t and independent between samples.
        method: adaptive ('dopri5', 'dopri8', 'bosh3', 'adaptive_heun'), or with num_steps one of the fixed-step
            'euler', 'midpoint', 'heun3' and 'rk4'.
        rtol, atol: tolerated error of an adaptive step.
        num_probes: Rademacher vectors per sample.
        exact: take the trace itself, by C H W backward passes: for small dimensions.
        probes: random vectors to use in place of `seed`'s, each (N, C, H, W) with mean 0 and covariance 1.
        seed: sample i has the probes of (seed, first_index + i), whatever the batch.

    Raises:
        ValueError: a discrete process, a method that does not go with num_steps, wrong probes; or as `integrate`.
    """
    if process.num_timesteps is not None:
        what = f"log_likelihood needs a velocity, but {type(process).__name__} has discrete timesteps"
        raise ValueError(f"{what}: take a model that was trained with a continuous process")
    known = ADAPTIVE if num_steps is None else EVALUATIONS_PER_STEP
    if method not in known:
        raise ValueError(f"method = {method!r} with num_steps = {num_steps}: it is one of {', '.join(known)}")
    if num_probes < 1 or (num_steps is not None and num_steps < 1):
        raise ValueError(f"num_probes = {num_probes}, num_steps = {num_steps}: at least 1 is needed")
    if probes is None:
        probes = _unit_vectors(x) if exact else _rademacher(x, num_probes, seed, first_index)
    elif exact or not len(probes) or any(probe.shape != x.shape for probe in probes):
        raise ValueError(f"log_likelihood: probes takes tensors of shape {tuple(x.shape)}, and none where exact = True")
    probes = [probe.to(x) for probe in probes]
    # The sum over unit vectors is the trace; over random ones, the mean.
    weight = 1.0 if exact else 1 / len(probes)
    num_evaluations = 0

    def slope(state: tuple[Tensor, Tensor], t: float) -> tuple[Tensor, Tensor]:
        nonlocal num_evaluations
        num_evaluations += 1
        with torch.enable_grad():
            x_t = state[0].detach().requires_grad_()
            velocity = process.velocity(denoise(x_t, t), x_t, t)
            divergence = torch.zeros_like(state[1])
            for k, probe in enumerate(probes):
                (gradient,) = torch.autograd.grad(velocity, x_t, probe, retain_graph=k + 1 < len(probes))
                divergence += weight * (gradient * probe).sum(dim=(1, 2, 3))
        return velocity.detach(), divergence

    first, last = process.t_range()
    solver = {"method": method, "num_steps": num_steps, "rtol": rtol, "atol": atol}
    with torch.no_grad():
        noise, integral = integrate(slope, (x, x.new_zeros(len(x))), last, first, **solver)
    sigma = torch.as_tensor(process.sigma(first), dtype=torch.float64, device=x.device)
    log_normal = -0.5 * (noise.double() / sigma).square() - sigma.log() - 0.5 * math.log(2 * math.pi)
    # The integral was taken backwards, from last to first: it has the minus sign already.
    log_p = log_normal.sum(dim=(1, 2, 3)) + integral.double()
    return Likelihood(log_p, -log_p / (x[0].numel() * math.log(2)), num_evaluations, noise)


def _rademacher(x: Tensor, num_probes: int, seed: int, first_index: int) -> list[Tensor]:
    """num_probes times (N, C, H, W) of -1 and 1."""
    generators = [torch.Generator().manual_seed(mix_seeds(seed, first_index + i)) for i in range(len(x))]
    signs = [torch.stack([torch.randint(2, x.shape[1:], generator=g) for g in generators]) for _ in range(num_probes)]
    return [2 * sign - 1 for sign in signs]


def _unit_vectors(x: Tensor) -> list[Tensor]:
    """C H W times (N, C, H, W), the same for every sample."""
    return [row.view(1, *x.shape[1:]).expand_as(x) for row in torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)]
