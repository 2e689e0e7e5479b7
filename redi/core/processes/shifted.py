"""`Clocked` with `clocks.Shift`, under the name of version 0.1."""

from collections.abc import Mapping

from torch import Tensor

from redi.core.clocks.shift import Shift
from redi.core.processes import Process, register
from redi.core.processes.clocked import Clocked
from redi.core.processes.flow_matching import FlowMatching


@register
class Shifted(Clocked):
    """The former name of `JointObjective.clock = @clocks.Shift()`, kept for one version.

    It differs in that the network needs no time per group, because the time of the image determines the others.

    Examples:
        >>> from redi.core.channels import Channels
        >>> process = Shifted(shift={"dinov2": 0.5}).for_channels(Channels(image=1, dinov2=2))
        >>> [round(value, 3) for value in process.alpha(0.5).flatten().tolist()]
        [0.5, 0.667, 0.667]
    """

    def __init__(self, process: Process | None = None, *, shift: Mapping[str, float] | None = None):
        super().__init__(FlowMatching() if process is None else process, Shift(shift=shift))

    def t_range(self) -> tuple[float, float]:
        if self.process.t_range() == (0, 1):  # exact
            return 0.0, 1.0
        ends = [[self.clock.shared_time(name, t) for name in self.channels] for t in self.process.t_range()]
        return max(ends[0]), min(ends[1])  # as in version 0.1: every group stays away from the poles

    def model_time(self, t: Tensor) -> Tensor:
        return super().model_time(t) if self.clock.shift else self.process.model_time(t)  # type: ignore[attr-defined]  # a Shift

    def provenance(self) -> dict:
        return {"name": "Shifted", "process": self.process.provenance(), "shift": self.clock.shift}  # type: ignore[attr-defined]  # a Shift
