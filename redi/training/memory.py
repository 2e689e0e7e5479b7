"""Predict the memory of a training step before the first step, without a GPU and without allocating the memory."""

import copy
import logging
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redi.core.ema import AveragedWeights
from redi.core.ema.exponential import EMA
from redi.core.objective import JointObjective
from redi.models.cost import without_memory
from redi.models.interface import build_model
from redi.runtime.device import Precision, free_memory
from redi.runtime.distributed import Processes
from redi.training.optimizers import make_optimizer
from redi.training.parallel import Parallel
from redi.training.step import FLOAT32, TrainingStep

log = logging.getLogger(__name__)

GIB = 2**30
REMEDIES = (
    "Raise train.accumulate{parts}, which computes the batch in parts with the same result; set "
    "DiffusionTransformer.checkpointing = True, which takes a third more time; lower train.batch_size; or choose a "
    "smaller model or smaller images (DiffusionTransformer.size, Preprocessing.image_size). "
    "train.check_memory = False skips this check"
)


class MemoryCount(TorchDispatchMode):
    """Context that counts the bytes of the tensors allocated in it: those alive `now`, and the `peak` so far.

    Storages are counted, so views are free. Workspaces of kernels and rounding by the allocator are not included.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.storages: weakref.WeakSet = weakref.WeakSet()

    def add(self, *tensors: Tensor) -> None:
        """Count tensors that were allocated before the context."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self.storages:
                self.storages.add(storage)
                weakref.finalize(storage, self._freed, storage.nbytes())
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _freed(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.add(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)))
        return result


def predicted_memory(
    model: nn.Module, objective: JointObjective, batch_size: int, *, grid: tuple[int, int], accumulate: int = 1,
    precision: Precision = FLOAT32, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    ema: Callable[..., AveragedWeights] = EMA, alignment_dim: int | Mapping[str, int] | None = None,
    num_first_steps: int = 0,
) -> int:  # fmt: skip
    """Predict the peak bytes of a training step on encoded data, in seconds, with tensors that have no memory.

    Attention is assumed not to store its scores, which holds for all backends except 'math'. Workspaces and
    fragmentation on a GPU are not included: leave a tenth of the memory free.

    Args:
        model: may be on the meta device.
        grid: (H, W) of the joint state.
        alignment_dim: E of REPA's features, if the model has a projector; {name: E} if it has several.
        num_first_steps: number of steps before the counted one, needed if losses are traced at their first call.
    """
    from torch._subclasses import FakeTensorMode

    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
        # On the CPU, because a backward pass needs its device. The same tensors are stored on both.
        fake = without_memory(model, "cpu").train()
        one = {"alignment": alignment_dim} if isinstance(alignment_dim, int) else {}
        dims = alignment_dim if isinstance(alignment_dim, Mapping) else one
        loss_of = copy.copy(objective)
        loss_of.parts = getattr(fake, "objective_parts", loss_of.parts)
        take_step = TrainingStep(
            codec=JoinedCodec(dims),  # type: ignore[arg-type]  # a step on encoded data calls only its `join`
            model=fake, objective=loss_of, ema=ema(model=fake), precision=precision,
            optimizer=torch.optim.SGD(fake.parameters(), lr=0.0, fused=True), accumulate=accumulate,
        )  # fmt: skip
        x = torch.empty(batch_size, objective.channels.total, *grid)
        batch = {"image": x, "labels": torch.zeros(batch_size, dtype=torch.int64)}
        batch |= {name: torch.empty(batch_size, dim, 1, 1) for name, dim in dims.items()}
        sizes = {name: part.projection.shape[0] for name, part in loss_of.projections.items()}
        batch |= {name: torch.empty(batch_size, size, 1, 1) for name, size in sizes.items()}
        for step in range(num_first_steps):
            take_step(batch, step)
        averages = [*take_step.ema.parameters.values(), *take_step.ema.extra_state().values()]
        with MemoryCount() as memory:
            memory.add(*fake.parameters(), *fake.buffers(), *averages, *batch.values())
            take_step(batch, num_first_steps)
    return memory.peak + optimizer_memory(optimizer, model)


def optimizer_memory(optimizer: Callable[..., torch.optim.Optimizer], model: nn.Module) -> int:
    """Return the bytes of optimizer state (twice the weights for Adam), measured with a small copy of each weight."""
    sizes = {p: nn.Parameter(torch.zeros([8] * p.ndim, dtype=p.dtype), p.requires_grad) for p in model.parameters()}
    memo: dict[int, Tensor] = {id(b): b for b in model.buffers()} | {id(p): small for p, small in sizes.items()}
    optim = make_optimizer(optimizer, copy.deepcopy(model, memo))
    for small in sizes.values():
        small.grad = torch.zeros_like(small) if small.requires_grad else None
    optim.step()

    def share(small: nn.Parameter) -> float:
        state = [value for value in tree_leaves(optim.state.get(small, {})) if isinstance(value, Tensor) and value.ndim]
        return sum(value.nbytes for value in state) / small.nbytes

    return round(sum(p.nbytes * share(small) for p, small in sizes.items()))


@dataclass
class JoinedCodec:
    """Stands in for a codec if the stored "image" is already the joint state; `alignments`: names of features."""

    alignments: Collection[str] = ()

    def join(self, stored: Mapping[str, Tensor], randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        """Return the joint state (N, C, H, W)."""
        return stored["image"]


def check_memory(
    model: Callable[..., nn.Module], model_arguments: Mapping, objective: JointObjective, *, device: torch.device,
    compiled: bool, processes: Processes, parallel: Parallel, batch_size: int, accumulate: int, **settings,
) -> None:  # fmt: skip
    """Log the predicted memory of a step and the free memory. Raises ValueError if the step cannot fit.

    Args:
        model, model_arguments: as in `train`; the model is built on the meta device.
        batch_size: images per step over all processes.
        settings: further arguments of `predicted_memory`.
    """
    if processes.size > 1 and not parallel.keeps_whole:
        log.info("memory: no prediction, because each process holds only a part of the model")
        return
    rows = batch_size // processes.size
    settings |= {"grid": model_arguments["grid"], "alignment_dim": model_arguments.get("alignment_dim")}
    try:
        with torch.device("meta"):
            net = objective.attach(build_model(model, model_arguments))
            predict = cache(partial(predicted_memory, net, objective, rows, **settings))
        needed = predict(accumulate=accumulate)
    except Exception as error:  # for example a plug-in that reads values; real errors recur in the first step
        log.info("memory: no prediction, because the dry run failed: %s: %s", type(error).__name__, error)
        return
    free, total = free_memory(device)
    size = f"{needed / GIB:.1f} GiB" if needed > GIB / 10 else f"{needed / 2**20:.0f} MiB"
    text = f"a training step needs {'at most ' * compiled}about {size}, and {free / GIB:.1f} of {total / GIB:.1f} GiB"
    text += f" are free ({device.type})"
    # Accept every step that fits: compiled steps store less, by an unknown amount, and GPU kernels a little less.
    share = 0.5 if compiled else 1.0 if device.type == "cpu" else 0.9
    if share * needed <= free:
        log.info("memory: %s", text)
        return
    divisors = (parts for parts in range(accumulate + 1, rows + 1) if rows % parts == 0)
    enough = next((parts for parts in divisors if predict(accumulate=parts) <= 0.9 * free), None)
    parts = f" ({enough}: {predict(accumulate=enough) / GIB:.1f} GiB)" if enough else " (not sufficient by itself)"
    raise ValueError(f"{text}. {REMEDIES.format(parts=parts)}")
