"""Watching the modules of a model for the first number that is not finite."""

from contextlib import ExitStack

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


class Watch:
    """Notes the first number that is not finite, going forward and going back.

    Modules see views of their own of what they are given and give, so that the gradient of each view is this module's
    share alone. A view costs no memory.
    """

    def __init__(self, model: nn.Module, num_rows: int, hooks: ExitStack):
        self.model, self.num_rows = model, num_rows
        self.forward: tuple[str, list[int]] | None = None
        self.backward: tuple[str, bool, list[int]] | None = None
        self.output_rows: list[int] = []
        self.overflowing_rows: list[int] = []
        for name, module in model.named_modules():
            for handle in self._register(module, name):
                hooks.callback(handle.remove)

    def _register(self, module: nn.Module, name: str) -> list:
        def before(_, args, kwargs):
            return tree_map(lambda value: self._watched(value, name, inside=True), (args, kwargs))

        def after(_, args, kwargs, output):
            tensors = [value for value in tree_leaves(output) if _is_float(value)]
            if self.forward is None and not all(map(finite, tensors)):
                self.forward = name, self._rows(tensors)
            if module is self.model:
                self.output_rows = self._rows(tensors)
                self.overflowing_rows = self._rows([value.detach().float().square() for value in tensors])
            return tree_map(lambda value: self._watched(value, name, inside=False), output)

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    def _watched(self, value, name: str, inside: bool):
        if not (_is_float(value) and value.requires_grad):
            return value
        value = value.view_as(value)

        def arrives(gradient: Tensor) -> None:
            if self.backward is None and not finite(gradient):
                self.backward = name, inside, self._rows([gradient])

        value.register_hook(arrives)
        return value

    def _rows(self, tensors: list[Tensor]) -> list[int]:
        """Of those tensors that have a row for each sample."""
        fitting = [value for value in tensors if value.ndim and len(value) == self.num_rows]
        return sorted({row for value in fitting for row in bad_rows(value)})


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def finite(tensor: Tensor) -> bool:
    """Whether all of it is; of a sharded tensor this process's part."""
    return bool(local(tensor).isfinite().all())


def bad_rows(tensor: Tensor) -> list[int]:
    """Along its first dimension, those with a number that is not finite."""
    return (~tensor.detach().isfinite()).reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()


def _is_float(value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
