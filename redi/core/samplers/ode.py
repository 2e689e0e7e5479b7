"""ODE solvers of torchdiffeq on the probability-flow ODE, with fixed and adaptive steps."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import ContinuousSampler, Denoise, Draw, Keep, clipped, register

State = tuple[Tensor, ...]  # each (N, ...)
EVALUATIONS_PER_STEP = {"euler": 1, "midpoint": 2, "heun3": 3, "rk4": 4}
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")


@register
class FixedODE(ContinuousSampler):
    """A Runge-Kutta method with equal steps in t.

    Args:
        num_evaluations: network evaluations, a multiple of the method's evaluations per step.
        method: 'euler', 'midpoint', 'heun3' or 'rk4' (the 3/8 rule). Order and evaluations per step are 1, 2, 3 and 4.

    Examples:
        A method of order 2 is exact for a velocity linear in t: x(1) = noise + 1 for v = 2 t.

        >>> from redi.core.processes import FlowMatching
        >>> noise = torch.randn(2, 1, 4, 4)
        >>> sampler = FixedODE(num_evaluations=4, method="midpoint")
        >>> x = sampler(lambda x, t: torch.full_like(x, 2 * t), FlowMatching(), lambda: noise)
        >>> torch.allclose(x, noise + 1, atol=1e-6)
        True
    """

    def __init__(
        self, num_evaluations: int = 250, *, method: Literal["euler", "midpoint", "heun3", "rk4"] = "midpoint"
    ):
        super().__init__(num_evaluations=num_evaluations)
        if method not in EVALUATIONS_PER_STEP:
            raise ValueError(f"FixedODE.method = {method!r}: must be one of {', '.join(EVALUATIONS_PER_STEP)}")
        if num_evaluations % EVALUATIONS_PER_STEP[method]:
            allowed = f"must be a multiple of {EVALUATIONS_PER_STEP[method]}, the evaluations per step of {method!r}"
            raise ValueError(f"FixedODE.num_evaluations = {num_evaluations}: {allowed}")
        self.method = method

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        num_steps = self.num_evaluations // EVALUATIONS_PER_STEP[self.method]
        settings: dict[str, Any] = {"method": self.method, "num_steps": num_steps, "keep": keep}
        return integrate(_velocity(denoise, process), (draw(),), *clipped(process, start, end), **settings)[0]


@register
class AdaptiveODE(ContinuousSampler):
    """A Runge-Kutta method that adapts its steps to the estimated error. The number of evaluations is not fixed.

    The largest error of any image in the batch sets the step size. Within the tolerance, an image therefore depends on
    its batch, unlike with FixedODE, Heun and Euler.

    Args:
        method: the solver of torchdiffeq. 'dopri5' is the fifth-order method of Dormand and Prince.
        rtol, atol: relative and absolute error tolerance per step.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> noise = torch.randn(2, 1, 4, 4)
        >>> x = AdaptiveODE(rtol=1e-5, atol=1e-5)(lambda x, t: x, FlowMatching(), lambda: noise)
        >>> torch.allclose(x, noise * torch.e, rtol=1e-4)  # dx/dt = x
        True
    """

    def __init__(
        self, method: Literal["dopri5", "dopri8", "bosh3", "adaptive_heun"] = "dopri5", *, rtol: float = 1e-3,
        atol: float = 1e-6,
    ):  # fmt: skip
        if method not in ADAPTIVE:
            raise ValueError(f"AdaptiveODE.method = {method!r}: must be one of {', '.join(ADAPTIVE)}")
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not value > 0:
                raise ValueError(f"AdaptiveODE.{name} = {value}: must be positive")
        self.num_evaluations, self.method, self.rtol, self.atol = None, method, rtol, atol

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        settings: dict[str, Any] = {"method": self.method, "rtol": self.rtol, "atol": self.atol, "keep": keep}
        return integrate(_velocity(denoise, process), (draw(),), *clipped(process, start, end), **settings)[0]


def integrate(
    slope: Callable[[State, float], State], state: State, start: float, end: float, *, method: str,
    num_steps: int | None = None, rtol: float = 1e-3, atol: float = 1e-6, keep: Keep = lambda t, x: x,
) -> State:  # fmt: skip
    """Integrate d state / dt = slope(state, t) from `start` to `end` and return the state at `end`.

    `slope` is never evaluated outside [start, end]. Raises ValueError if the slope is not finite, or the tolerance is
    below the rounding error.

    Args:
        num_steps: number of steps of a fixed-step method, which ignores the tolerances. None for adaptive methods.
        keep: called with t and the first tensor of the state, at the start and after every accepted step.
    """
    from torchdiffeq import odeint

    low, high = min(start, end), max(start, end)
    times = torch.tensor([start, end], dtype=torch.float64, device=state[0].device)

    def function(t: Tensor, y: State) -> State:
        # Clamped, because torchdiffeq's first probe and rounding can leave [start, end].
        return slope(y, min(max(float(t), low), high))

    # torchdiffeq reads its callbacks from attributes of the function, and passes the state before the step.
    options: dict[str, Any]
    if num_steps is None:
        options = {"step_t": times[1:], "norm": _worst_sample}  # a step ends at `end`, without interpolation
        function.callback_accept_step = lambda t, y, dt: keep(float(t), y[0])  # type: ignore[attr-defined]  # see above
    else:
        grid = torch.linspace(start, end, num_steps + 1, dtype=torch.float64, device=times.device)
        options = {"grid_constructor": lambda *_: grid}
        function.callback_step = lambda t, y, dt: keep(float(t), y[0])  # type: ignore[attr-defined]  # see above
    try:
        solution = odeint(function, state, times, method=method, rtol=rtol, atol=atol, options=options)
    except AssertionError as error:
        raise ValueError(
            f"the ODE solver {method} failed ({str(error)[:80]}): the prediction of the network is not finite, or the "
            f"tolerances rtol = {rtol}, atol = {atol} are below the rounding error of {state[0].dtype}: check the "
            "network, or raise the tolerances"
        ) from error
    keep(end, solution[0][-1])
    return tuple(values[-1] for values in solution)


def _worst_sample(state: State) -> Tensor:
    """Return the largest root mean square of any sample in any part of the state."""
    return torch.stack([part.reshape(len(part), -1).square().mean(dim=1).max() for part in state]).max().sqrt()


def _velocity(denoise: Denoise, process: Process) -> Callable[[State, float], State]:
    return lambda state, t: (process.velocity(denoise(state[0], t), state[0], t),)
