"""Muon for the matrices of the blocks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from redi.runtime.ranges import check_number
from redi.training.optimizers import ADAMW, ModelOptimizer, register


@register
class Muon(ModelOptimizer):
    """Orthogonalized momentum (torch.optim.Muon) for the matrices of the blocks, another optimizer for the rest.

    The momentum of a matrix is replaced by a nearly orthogonal matrix: all singular directions move about equally far.
    The matrices are the two-dimensional parameters in `model.blocks`: attention, MLP and modulation. Embeddings, heads,
    norms and biases belong to `others`. The fused weights of queries, keys and values count as one matrix, as do those
    of the modulation. Orthogonalization runs in bfloat16 on every device. The state is one tensor per matrix, where
    Adam has two.

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
        if adjust_lr_fn not in ("match_rms_adamw", "original"):
            raise ValueError(f"Muon.adjust_lr_fn = {adjust_lr_fn!r}: must be 'match_rms_adamw' or 'original'")
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
        """Update all parameters, unless the attribute `found_inf`, a tensor that torch's GradScaler has too, is 1."""
        found_inf = getattr(self, "found_inf", None)
        matrices, *self.rest.param_groups = self.param_groups
        self.rest.state = self.state
        self.rest.found_inf = found_inf  # type: ignore[attr-defined]
        loss = self.rest.step(closure)
        for matrix in matrices["params"]:
            if matrix.grad is None:
                continue
            if "momentum_buffer" not in (state := self.state[matrix]):
                state["momentum_buffer"] = torch.zeros_like(matrix)
            self._step_of(matrix, state["momentum_buffer"], matrices, found_inf)
        return loss

    def _step_of(self, matrix: Tensor, momentum: Tensor, group: dict, found_inf: Tensor | None) -> None:
        """Take the step on copies of the whole matrix and momentum, and keep the results unless `found_inf` is 1."""
        tensors = (matrix, momentum)
        before = [_whole(tensor) for tensor in tensors]
        after = [nn.Parameter(before[0].clone()), before[1].clone()]
        after[0].grad = _whole(matrix.grad)
        self.muon.param_groups = [group | {"params": after[:1]}]
        self.muon.state[after[0]] = {"momentum_buffer": after[1]}
        self.muon.step()
        self.muon.state.clear()
        for tensor, old, new in zip(tensors, before, after, strict=True):
            result = new if found_inf is None else torch.where(found_inf.bool(), old, new)
            tensor.copy_(_sharded(result, like=tensor))


def _whole(tensor: Any) -> Tensor:
    """Return a tensor that may be sharded as a whole one."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _sharded(whole: Tensor, like: Any) -> Tensor:
    """Return a whole tensor in the form of another one. Without communication: every process keeps its part."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
