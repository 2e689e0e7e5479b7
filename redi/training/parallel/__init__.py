"""Strategies for training one model on several processes, and their registry."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor, nn

from redi.core.objective import JointObjective
from redi.core.registry import Registry, discover
from redi.runtime.distributed import Processes


class Parallel(ABC):
    """A strategy for training on several processes: `train.parallel = @parallel.DDP()`. A single process needs none.

    Gradients are averaged over processes, so that the update is that of the whole batch. A component implements
    `distribute` and `sharing`, and may override `wrap`. If each process holds only a part of the model, override
    `gathered`, `scattered` and `write` as well.

    Attributes:
        whole_graph: True if corruption, network and losses compile as one graph, False if each block compiles alone.
        keeps_whole: True if every process has the whole model, and can sample from it.
        needs_every_gradient: True if a parameter that no loss uses is an error, such as REPA's projector at the end.
    """

    whole_graph = True
    keeps_whole = True
    needs_every_gradient = False

    def check(self, objective: JointObjective) -> None:
        """Raise ValueError if the strategy cannot train the parts of this objective."""
        if objective.parts and not self.keeps_whole:
            what = f"train.parallel = {type(self).__name__} with {', '.join(objective.parts)}, which trains with the"
            reason = "network but runs outside of it, where no weights are gathered"
            raise ValueError(f"{what} {reason}: bind @parallel.DDP()")

    @abstractmethod
    def distribute(self, model: nn.Module, processes: Processes, *, compiled: bool) -> None:
        """Distribute the model's parameters over the processes, in place, before the optimizer is constructed."""

    def wrap(self, forward: nn.Module, model: nn.Module) -> nn.Module:
        """Return the module to call instead of `forward`, which contains `model`. It may average the gradients."""
        return forward

    @abstractmethod
    def sharing(self, wrapped: nn.Module, model: nn.Module, last: bool) -> AbstractContextManager:
        """Return a context for one part of a batch. Gradients are shared in the context of the `last` part."""

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters or averages as whole tensors. All processes call it."""
        return dict(tensors)

    def scattered(self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Shard whole tensors like the tensors of the same names in `like`; the inverse of `gathered`."""
        return dict(tensors)

    def write(self, groups: Mapping[str, Mapping[str, Tensor]], folder: Path, processes: Processes) -> dict[str, Path]:
        """Write the sharded groups into `folder`; return {group: file}. All processes call it. Raises OSError."""
        return {}


parallels = Registry("parallel", Parallel)
register = parallels.register
discover(__name__, parallels)
