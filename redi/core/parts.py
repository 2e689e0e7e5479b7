"""The parts of an objective: modules that train together with the network."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from torch import Tensor, nn

from redi.core.clocks import Clock

PREFIX = "objective_parts."  # of their tensors in the state dict of a network
PROJECTION = "projection/"  # of the values that a learned projection logs


class WithParts:
    """An objective whose modules train with the network; by default it has none.

    `attach` makes them part of the network. Optimizer, averages, checkpoints, gradient clipping and DDP therefore treat
    their parameters like those of the network. They have no learning rate of their own: under Adam, a factor on a
    parameter is a factor on its rate.

    Examples:
        >>> objective = WithParts()
        >>> objective.parts["temperature"] = nn.Linear(1, 1)
        >>> [name for name, _ in objective.attach(nn.Identity()).named_parameters()]
        ['objective_parts.temperature.weight', 'objective_parts.temperature.bias']
    """

    clock: Clock
    parts: nn.ModuleDict

    def __init__(self) -> None:
        self.parts = nn.ModuleDict()
        self._trained: list[nn.Parameter] = []

    def attach(self, net: nn.Module) -> nn.Module:
        """Register the parts, if there are any, as `net.objective_parts`, and return the network."""
        if self.parts:
            net.objective_parts = self.parts
            self._trained = list(net.parameters())
        return net

    def with_parts_of(self, codec: Any) -> Self:
        """Add the halves of reducers that train with the network (`Reducer.trained_part`); return the objective."""
        if parts := codec.trained_parts():
            self.parts["projections"] = nn.ModuleDict(parts)
        return self

    @property
    def projections(self) -> Mapping[str, Any]:
        """{group: the half of its reducer that trains with the network}."""
        parts: Any = self.parts
        return dict(parts["projections"].items()) if "projections" in parts else {}

    def observe(self, stored: Mapping[str, Tensor], average: Callable[[Mapping], Mapping] = dict) -> dict[str, Any]:
        """Take statistics of a batch as a cache stores it; return further arguments of `losses`, tensors by name.

        The batch is that of this process; `average` averages named tensors over the processes.
        """
        channels = {name: stored[name].float() for name in self.projections}
        for name, part in self.projections.items():
            part.observe(channels[name], average)
        return {"stored": channels} if channels else {}

    def remarks(self, values: Mapping[str, float]) -> Iterable[str]:
        """Yield warnings about a line of the log."""
        for group, part in self.projections.items():
            prefix = f"{PROJECTION}{group}/"
            named = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
            if (remark := part.remark(group, named)) is not None:
                yield remark

    def artefacts(self) -> dict[str, dict]:
        """Return {file name: JSON content} of what was learned, which every checkpoint writes to the run folder."""
        return self.clock.artefacts()

    def resting(self, step: int) -> Iterable[nn.Parameter]:
        """Return parameters that the optimizer leaves alone in this step, counted from 0: their gradient is dropped.

        A part with a method `moves(step)` takes turns with everything else: it rests unless that returns True, and then
        all others rest.
        """
        turns: list[Any] = [part for part in self.parts.values() if hasattr(part, "moves")]
        moving = {id(parameter) for part in turns if part.moves(step) for parameter in part.parameters()}
        if moving:
            return [parameter for parameter in self._trained if id(parameter) not in moving]
        return [parameter for part in turns for parameter in part.parameters()]


def without_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state dict that belong to the network itself."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
