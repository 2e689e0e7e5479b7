"""The parts of an objective: modules that train together with the network."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import Tensor, nn

PREFIX = "objective_parts."  # of their tensors in the state dict of a network
Network = TypeVar("Network", bound=nn.Module)


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

    parts: nn.ModuleDict

    def __init__(self) -> None:
        self.parts = nn.ModuleDict()

    def attach(self, net: Network) -> Network:
        """Register the parts, if there are any, as `net.objective_parts`, and return the network."""
        if self.parts:
            net.objective_parts = self.parts
        return net

    def resting(self, step: int) -> Iterable[nn.Parameter]:
        """Return parameters that the optimizer leaves alone in this step, counted from 0: their gradient is dropped."""
        return ()


def without_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state dict that belong to the network itself."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
