"""ODE solvers of torchdiffeq on the probability-flow ODE, with fixed and adaptive steps."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import ContinuousSampler, Denoise, Draw, Keep, clipped, register
from redi.core.samplers.grid import FixedSteps

State = tuple[Tensor, ...]  # each (N, ...)
EVALUATIONS_PER_STEP = {"euler": 1, "midpoint": 2, "heun3": 3, "rk4": 4}
NUDGE = 1e-9  # distance from a kink, above the rounding of own times
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")


@register
class FixedODE(FixedSteps):
    """A Runge-Kutta method with a fixed number of steps.

    Args:
        num_evaluations: network evaluations, a multiple of the method's evaluations per step.
        method: 'euler', 'midpoint', 'heun3' or 'rk4' (the 3/8 rule). Order and evaluations per step are 1, 2, 3 and 4.
        shift, times: see `FixedSteps`.

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
        self, num_evaluations: int = 250, *, method: Literal["euler", "midpoint", "heun3", "rk4"] = "midpoint",
        shift: float = 1.0, times: Sequence[float] | None = None,
    ):  # fmt: skip
        if method not in EVALUATIONS_PER_STEP:
            raise ValueError(f"FixedODE.method = {method!r}: must be one of {', '.join(EVALUATIONS_PER_STEP)}")
        self.method = method
        super().__init__(num_evaluations=num_evaluations, shift=shift, times=times)

    @property
    def evaluations_per_step(self) -> int:  # type: ignore[override]  # depends on the method
        """Network evaluations per step."""
        return EVALUATIONS_PER_STEP[self.method]

    def grid(self, process: Process, start: float = 0.0, end: float = 1.0) -> list[float]:
        num_steps = self.num_evaluations // self.evaluations_per_step
        return self.adapted(process, equal_times(*clipped(process, start, end), num_steps))

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        times = self.grid(process, start, end)
        settings: dict[str, Any] = {"method": self.method, "kinks": process.kinks(), "keep": keep}
        return integrate(_velocity(denoise, process), (draw(),), times, **settings)[0]


@register
class AdaptiveODE(ContinuousSampler):
    """A Runge-Kutta method that adapts its steps to the estimated error. The number of evaluations is not fixed.

    The largest error of any image in the batch sets the step size. Within the tolerance, an image therefore depends on
    its batch, unlike with FixedODE, Heun and Euler. The padding of vectors (see `Channels`) counts as values without
    error, which loosens the tolerance slightly.

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
        settings: dict[str, Any] = {"method": self.method, "kinks": process.kinks(), "keep": keep}
        settings |= {"rtol": self.rtol, "atol": self.atol}
        return integrate(_velocity(denoise, process), (draw(),), clipped(process, start, end), **settings)[0]


def equal_times(first: float, last: float, num_steps: int) -> list[float]:
    """Return num_steps + 1 equal times, rounded as by `torch.linspace`."""
    return torch.linspace(first, last, num_steps + 1, dtype=torch.float64).tolist()


def integrate(
    slope: Callable[[State, float], State], state: State, times: Sequence[float], *, method: str,
    kinks: Sequence[float] = (), rtol: float = 1e-3, atol: float = 1e-6, keep: Keep = lambda t, x: x,
) -> State:  # fmt: skip
    """Integrate d state / dt = slope(state, t) from the first of the `times` to the last and return the state there.

    `slope` is never evaluated outside of the times, which increase or decrease. Raises ValueError if the slope is not
    finite, or the tolerance is below the rounding error.

    Args:
        times: the ends of the steps of a fixed-step method, which ignores the tolerances. For adaptive methods, only
            the first and the last one.
        kinks: times at which the slope jumps. No step crosses them, and the slope is evaluated on the side of the step.
            `times` of a fixed-step method must contain them (`grid.through_kinks`).
        keep: called with t and the first tensor of the state, at the start and after every accepted step.
    """
    low, high = min(times[0], times[-1]), max(times[0], times[-1])
    inside = sorted((kink for kink in kinks if low < kink < high), reverse=times[0] > times[-1])
    for first, last in pairwise([times[0], *inside, times[-1]]):
        between = [t for t in times if min(first, last) <= t <= max(first, last)]
        steps = (first, last) if method in ADAPTIVE else between
        state = _integrate(slope, state, steps, NUDGE if kinks else 0.0, method, rtol, atol, keep)
    keep(times[-1], state[0])
    return state


def _integrate(slope, state: State, times: Sequence[float], nudge: float, method, rtol, atol, keep: Keep) -> State:
    """Integrate without a kink between the times, with the slope of `nudge` inside them at both ends."""
    from torchdiffeq import odeint

    low, high = min(times[0], times[-1]) + nudge, max(times[0], times[-1]) - nudge
    grid = torch.tensor(times, dtype=torch.float64, device=state[0].device)

    def function(t: Tensor, y: State) -> State:
        # Clamped, because torchdiffeq's first probe and rounding can leave the times.
        return slope(y, min(max(float(t), low), high))

    # torchdiffeq reads its callbacks from attributes of the function, and passes the state before the step.
    options: dict[str, Any]
    if method in ADAPTIVE:
        options = {"step_t": grid[1:], "norm": _worst_sample}  # a step ends at the last time, without interpolation
        function.callback_accept_step = lambda t, y, dt: keep(float(t), y[0])  # type: ignore[attr-defined]  # see above
    else:
        options = {"grid_constructor": lambda *_: grid}
        function.callback_step = lambda t, y, dt: keep(float(t), y[0])  # type: ignore[attr-defined]  # see above
    ends = grid[[0, -1]]
    try:
        solution = odeint(function, state, ends, method=method, rtol=rtol, atol=atol, options=options)
    except AssertionError as error:
        raise ValueError(
            f"the ODE solver {method} failed ({str(error)[:80]}): the prediction of the network is not finite, or the "
            f"tolerances rtol = {rtol}, atol = {atol} are below the rounding error of {state[0].dtype}: check the "
            "network, or raise the tolerances"
        ) from error
    return tuple(values[-1] for values in solution)


def _worst_sample(state: State) -> Tensor:
    """Return the largest root mean square of any sample in any part of the state."""
    return torch.stack([part.reshape(len(part), -1).square().mean(dim=1).max() for part in state]).max().sqrt()


def _velocity(denoise: Denoise, process: Process) -> Callable[[State, float], State]:
    return lambda state, t: (process.velocity(denoise(state[0], t), state[0], t),)
