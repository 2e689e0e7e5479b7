"""Solvers of torchdiffeq for the probability-flow ODE, with fixed and with adaptive steps."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import ContinuousSampler, Denoise, Draw, Keep, clipped, register

State = tuple[Tensor, ...]  # each (N, ...)
EVALUATIONS_PER_STEP = {"euler": 1, "midpoint": 2, "heun3": 3, "rk4": 4}
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")


@register
class FixedODE(ContinuousSampler):
    """Equal steps of a Runge-Kutta method: `num_evaluations` is divided into whole steps.

    Args:
        num_evaluations: network evaluations; a multiple of the method's evaluations per step.
        method: 'euler', 'midpoint', 'heun3' or 'rk4' (the 3/8 rule): 1, 2, 3, 4 evaluations a step and order.
    """

    def __init__(
        self, num_evaluations: int = 250, *, method: Literal["euler", "midpoint", "heun3", "rk4"] = "midpoint"
    ):
        super().__init__(num_evaluations=num_evaluations)
        if method not in EVALUATIONS_PER_STEP:
            raise ValueError(f"FixedODE.method = {method!r}: it is one of {', '.join(EVALUATIONS_PER_STEP)}")
        if num_evaluations % EVALUATIONS_PER_STEP[method]:
            raise ValueError(
                f"FixedODE.num_evaluations = {num_evaluations} must be a multiple of {EVALUATIONS_PER_STEP[method]}, "
                f"the evaluations in a step of FixedODE.method = {method!r}"
            )
        self.method = method

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        num_steps = self.num_evaluations // EVALUATIONS_PER_STEP[self.method]
        settings = {"method": self.method, "num_steps": num_steps, "keep": keep}
        return integrate(_velocity(denoise, process), (draw(),), *clipped(process, start, end), **settings)[0]


@register
class AdaptiveODE(ContinuousSampler):
    """Steps as long as the estimated error allows, in as many evaluations as that takes.

    The worst image's error decides. The batch shares its steps, so an image depends on its neighbours within the
    tolerance, which it does not with FixedODE, Heun and Euler.

    Args:
        method: of torchdiffeq; 'dopri5' is Dormand and Prince's of order 5.
        rtol, atol: tolerated error of a step, relative to the state and absolute.
    """

    def __init__(
        self, method: Literal["dopri5", "dopri8", "bosh3", "adaptive_heun"] = "dopri5", *, rtol: float = 1e-3,
        atol: float = 1e-6,
    ):  # fmt: skip
        if method not in ADAPTIVE:
            raise ValueError(f"AdaptiveODE.method = {method!r}: it is one of {', '.join(ADAPTIVE)}")
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not value > 0:
                raise ValueError(f"AdaptiveODE.{name} = {value} must be positive")
        self.num_evaluations, self.method, self.rtol, self.atol = None, method, rtol, atol

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        settings = {"method": self.method, "rtol": self.rtol, "atol": self.atol, "keep": keep}
        return integrate(_velocity(denoise, process), (draw(),), *clipped(process, start, end), **settings)[0]


def integrate(
    slope: Callable[[State, float], State], state: State, start: float, end: float, *, method: str,
    num_steps: int | None = None, rtol: float = 1e-3, atol: float = 1e-6, keep: Keep = lambda t, x: x,
) -> State:  # fmt: skip
    """The state at `end`, from that at `start`, in float64 time; `slope` is never asked outside of the two.

    Args:
        num_steps: for the fixed-step methods, which ignore the tolerances; None for the adaptive ones.
        keep: is called with t and the first tensor of the state at the start and after every accepted step.

    Raises:
        ValueError: the solver cannot go on: the slope is not finite, or the tolerance is below the rounding error.
    """
    from torchdiffeq import odeint

    low, high = min(start, end), max(start, end)
    times = torch.tensor([start, end], dtype=torch.float64, device=state[0].device)

    def function(t: Tensor, y: State) -> State:
        # The probe for the first step and rounding could leave the part on which the process is defined.
        return slope(y, min(max(float(t), low), high))

    # torchdiffeq calls back with the state before the step.
    if num_steps is None:
        options = {"step_t": times[1:], "norm": _worst_sample}  # ends at `end`, instead of interpolating there
        function.callback_accept_step = lambda t, y, dt: keep(float(t), y[0])
    else:
        grid = torch.linspace(start, end, num_steps + 1, dtype=torch.float64, device=times.device)
        options = {"grid_constructor": lambda *_: grid}
        function.callback_step = lambda t, y, dt: keep(float(t), y[0])
    try:
        solution = odeint(function, state, times, method=method, rtol=rtol, atol=atol, options=options)
    except AssertionError as error:
        raise ValueError(
            f"the ODE solver {method} cannot go on ({str(error)[:80]}): the network's prediction is not finite, or the "
            f"tolerances rtol = {rtol}, atol = {atol} are below the rounding error of {state[0].dtype}"
        ) from error
    keep(end, solution[0][-1])
    return tuple(values[-1] for values in solution)


def _worst_sample(state: State) -> Tensor:
    """The largest root mean square of any sample in any part of the state."""
    return torch.stack([part.reshape(len(part), -1).square().mean(dim=1).max() for part in state]).max().sqrt()


def _velocity(denoise: Denoise, process: Process) -> Callable[[State, float], State]:
    return lambda state, t: (process.velocity(denoise(state[0], t), state[0], t),)
