"""Optimizers of a training run; Muon for the matrices of the blocks."""

import inspect
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from redi.core.registry import Registry, configurable
from redi.runtime.ranges import check_choice, check_number

# ReDi, arXiv 2504.16064, section 4.1: constant learning rate, no weight decay.
ADAMW = partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0, fused=True)

configurable(torch.optim.AdamW, module="torch.optim", harmless=("fused",))
configurable(torch.optim.Adam, module="torch.optim")
configurable(torch.optim.SGD, module="torch.optim")


class ModelOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer that treats parts of the model differently: `train.optimizer = @optimizers.Muon`.

    A component takes the argument `model`, passes its parameter groups to `super().__init__`, and implements `step`.
    Any other optimizer, such as `torch.optim.AdamW`, is called with the model's parameters.
    """

    @abstractmethod
    def step(self, closure=None):
        """Update the parameters from their gradients."""


optimizers = Registry("optimizers", ModelOptimizer, runtime=("model",))
register = optimizers.register


def make_optimizer(optimizer: Callable[..., torch.optim.Optimizer], model: nn.Module) -> torch.optim.Optimizer:
    """Call `optimizer` with the model if it has the argument `model`, else with the parameters.

    Raises ValueError, naming the optimizer, for settings that it refuses or that are not finite.
    """
    name = getattr(getattr(optimizer, "func", optimizer), "__name__", "train.optimizer")
    # A class that gin wraps has a metaclass, which hides its signature.
    constructor: Callable = optimizer.__init__ if inspect.isclass(optimizer) else optimizer
    takes_model = "model" in inspect.signature(constructor).parameters
    try:
        optim = optimizer(model=model) if takes_model else optimizer(model.parameters())
    except ValueError as error:
        raise ValueError(f"train.optimizer: {name} refuses its settings: {error}") from error
    for group in optim.param_groups:
        for setting, value in group.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}.{setting} = {value} must be a finite number")
    return optim


@register
class Muon(ModelOptimizer):
    """Orthogonalized momentum (torch.optim.Muon) for the matrices of the blocks, another optimizer for the rest.

    The matrices are the two-dimensional parameters in `model.blocks`: attention, MLP and modulation. The fused weights
    of queries, keys and values count as one, as do those of the modulation. Orthogonalization runs in bfloat16.

    A step is skipped on the device if the gradient is not finite: it is taken on copies, one matrix at a time. Under
    DDP and FSDP every process orthogonalizes all matrices; with FSDP it gathers weight, gradient and momentum of each.

    Args:
        lr: learning rate of the matrices; default: that of `others`, which `adjust_lr_fn` makes suitable.
        momentum, nesterov: as in PRX and RAEv2.
        ns_steps: iterations of the orthogonalization, less than 100.
        adjust_lr_fn: scale of a step for a matrix with these rows and columns. 'match_rms_adamw':
            0.2 max(rows, columns)^1/2, with steps about as large as those of AdamW (Liu et al., arXiv 2502.16982,
            section 2.2), so that its learning rate can be kept. 'original': max(1, rows / columns)^1/2.
        weight_decay: of the matrices. torch's own default is 0.1; ReDi, PRX and RAEv2 have none.
        others: class or function that constructs the optimizer of all other parameters; default: AdamW as in `train`,
            with a learning rate of 1e-4. In a gin file bind `@torch.optim.AdamW`, so that its bindings have an effect.
    """

    def __init__(
        self, model: nn.Module, *, lr: float | None = None, momentum: float = 0.95, nesterov: bool = True,
        ns_steps: int = 5, adjust_lr_fn: str = "match_rms_adamw", weight_decay: float = 0.0,
        others: Callable[..., torch.optim.Optimizer] | None = None,
    ):  # fmt: skip
        check_number("Muon.momentum", momentum, 0, whole=False, below=1)
        check_number("Muon.ns_steps", ns_steps, below=100)
        check_choice("Muon.adjust_lr_fn", adjust_lr_fn, ("match_rms_adamw", "original"))
        matrices = [p for block in getattr(model, "blocks", ()) for p in block.parameters() if p.ndim == 2]
        if not matrices:
            raise ValueError(
                f"{type(model).__name__}.blocks has no matrices: Muon needs a sequence of modules with two-dimensional "
                "parameters; set train.optimizer = @torch.optim.AdamW for this model"
            )
        chosen = {id(matrix) for matrix in matrices}
        rest = (others or ADAMW)([p for p in model.parameters() if id(p) not in chosen])
        muon = torch.optim.Muon(
            matrices, lr=rest.param_groups[0]["lr"] if lr is None else lr, momentum=momentum, nesterov=nesterov,
            ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn, weight_decay=weight_decay,
        )  # fmt: skip
        super().__init__(muon.param_groups + rest.param_groups, {})
        self.muon, self.rest = muon, rest
        self._step_supports_amp_scaling = getattr(rest, "_step_supports_amp_scaling", False)

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters, unless `found_inf`, which is set as torch.amp.GradScaler sets it, is 1."""
        found_inf = getattr(self, "found_inf", None)
        matrices, *self.rest.param_groups = self.param_groups
        self.rest.state = self.state
        self.rest.found_inf = found_inf  # type: ignore[attr-defined]
        loss = self.rest.step(closure)
        for matrix in (matrix for matrix in matrices["params"] if matrix.grad is not None):
            if "momentum_buffer" not in (state := self.state[matrix]):
                state["momentum_buffer"] = torch.zeros_like(matrix)
            tensors = (matrix, state["momentum_buffer"])
            before = [_whole(tensor) for tensor in tensors]
            weight, buffer = after = [nn.Parameter(before[0].clone()), before[1].clone()]
            weight.grad = _whole(matrix.grad)
            self.muon.param_groups = [matrices | {"params": [weight]}]
            self.muon.state = defaultdict(dict, {weight: {"momentum_buffer": buffer}})
            self.muon.step()
            for tensor, old, new in zip(tensors, before, after, strict=True):
                result = new if found_inf is None else torch.where(found_inf.bool(), old, new)
                if hasattr(tensor, "full_tensor"):  # every process keeps its part
                    from torch.distributed.tensor import distribute_tensor

                    result = distribute_tensor(result, tensor.device_mesh, tensor.placements, src_data_rank=None)
                tensor.copy_(result)
        return loss


def _whole(tensor: Any) -> Tensor:
    """Return the whole of a tensor, which may be sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
