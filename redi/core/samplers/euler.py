"""Euler's method on the probability-flow ODE."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Keep, register
from redi.core.samplers.grid import FixedSteps


@register
class Euler(FixedSteps):
    """The Euler method x <- x + dt v(x, t), with one evaluation per step.

    Args:
        num_evaluations, shift, times: see `FixedSteps`.
        split: False: no time moves onto a kink of the clock, and a group moves in every step that begins between its
            start and its end, both included, as in SFD's fixed-step loop (arXiv 2512.04926). It may start late, or pass
            its data. For SFD's linspace(0, 1.3, n), bind `times` to these float32 numbers / 1.3, the last one to 1.

    Examples:
        A constant velocity is integrated exactly with any number of steps.

        >>> import torch
        >>> from redi.core.processes import FlowMatching
        >>> noise = torch.randn(2, 1, 4, 4)
        >>> x = Euler(num_evaluations=3)(lambda x, t: torch.ones_like(x), FlowMatching(), lambda: noise)
        >>> torch.allclose(x, noise + 1, atol=1e-6)
        True
    """

    def __init__(
        self, num_evaluations: int = 250, *, shift: float = 1.0, times: Sequence[float] | None = None,
        split: bool = True,
    ):  # fmt: skip
        super().__init__(num_evaluations, shift=shift, times=times)
        if not split:  # no attribute otherwise: records of other runs stay the same
            self.split = False

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        times = self.grid(process, start, end)
        x = keep(times[0], draw())
        for t, t_next in pairwise(times):
            step = process.between(t, t_next) if self.split else process
            velocity = step.velocity(denoise(x, t), x, t)
            x = keep(t_next, x + (t_next - t) * velocity)
        return x
