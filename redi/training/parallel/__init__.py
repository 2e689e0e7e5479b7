"""How several processes share the training of one model, and the registry of the ways."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor, nn

from redi.core.registry import Registry, discover
from redi.runtime.distributed import Processes


class Parallel(ABC):
    """A way to train on several processes: `train.parallel = @parallel.DDP()`. One process alone needs none.

    Gradients of a step are means over processes, so that the update is that of the whole batch. A component implements
    `distribute` and `sharing`, and may override `wrap`. Where a process holds a part of the model, it also overrides
    `gathered`, `scattered` and `write`.

    Attributes:
        whole_graph: whether corruption, network and losses compile as one graph; else blocks do, one by one.
        keeps_whole: whether every process has the whole model, and can sample from it.
    """

    whole_graph = True
    keeps_whole = True

    @abstractmethod
    def distribute(self, model: nn.Module, processes: Processes, *, compiled: bool) -> None:
        """Lays the model's parameters out over the processes, in place, before there is an optimizer."""

    def wrap(self, forward: nn.Module, model: nn.Module) -> nn.Module:
        """-> what is called in place of `forward`, a module around `model`, so that gradients are shared."""
        return forward

    @abstractmethod
    def sharing(self, wrapped: nn.Module, model: nn.Module, last: bool) -> AbstractContextManager:
        """Context for one part of a batch; gradients are shared with the `last` one."""

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors of parameters or averages; all processes call it."""
        return dict(tensors)

    def scattered(self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse: whole tensors, which every process has, laid out as those of these names in `like` are."""
        return dict(tensors)

    def write(self, groups: Mapping[str, Mapping[str, Tensor]], folder: Path, processes: Processes) -> dict[str, Path]:
        """Write the groups that no process has whole into `folder` -> {group: file}; all call it. Raises OSError."""
        return {}


parallels = Registry("parallel", Parallel)
register = parallels.register
discover(__name__, parallels)
