"""How much memory a training step takes, known without the device and without the memory."""

import copy
import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redi.core.ema import EMA
from redi.core.objective import JointObjective
from redi.models.cost import without_memory
from redi.runtime.device import Precision
from redi.training.step import TrainingStep

ADAMW = partial(torch.optim.AdamW, fused=True)  # others read the gradient's norm, but nothing has a value here


class MemoryCount(TorchDispatchMode):
    """Context that counts the bytes of all tensors made in it: alive `now`, and at most so far (`peak`).

    Storages, not tensors: views are free. What a kernel allocates for itself is not seen, nor what an allocator rounds.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def add(self, *tensors: Tensor) -> None:
        """Counts tensors that were there before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self.known:
                self.known.add(storage)
                weakref.finalize(storage, self._freed, storage.nbytes())
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _freed(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.add(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)))
        return result


def training_memory(
    model: nn.Module,
    objective: JointObjective,
    *,
    batch_size: int,
    precision: Precision,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAMW,
    compiled: bool = False,
) -> int:
    """Peak bytes of a training step on cached data: weights, EMA, optimizer, gradients, what the backward pass needs.

    The steps run on tensors that have a shape and no memory, anywhere, in seconds. Attention is assumed to keep no
    scores, as all backends but 'math' do. The CUDA context (about half a GiB), workspaces and what the allocator cannot
    fill come on top: leave a tenth.

    Args:
        model: may be on the meta device.
        optimizer: a fused one; others read the gradient's norm.
        compiled: with the split of forward and backward that torch.compile makes, which computes again what is cheap.
            Its fused kernels are counted operation by operation, so this is a bound from above.
    """
    from torch._subclasses import FakeTensorMode

    objective = copy.copy(objective)
    with FakeTensorMode(allow_non_fake_inputs=True):
        # On the CPU, since there is no backward pass on a GPU that is absent; the same tensors are kept on both.
        fake = without_memory(model, "cpu").train()
        step = TrainingStep(
            codec=Joined(), model=fake, objective=objective, optimizer=optimizer(fake.parameters()),
            ema=EMA(model=fake), precision=precision,
        )  # fmt: skip
        x = torch.empty(batch_size, fake.channels.total, *fake.grid)
        batch = {"image": x, "labels": torch.zeros(batch_size, dtype=torch.int64)}
        if compiled:
            objective.losses = partitioned(objective.losses, fake)
            step(batch, 0)  # traces, with memory of its own
            step.optimizer = optimizer(fake.parameters())
        with MemoryCount() as memory:
            memory.add(*fake.parameters(), *fake.buffers(), *step.ema.parameters.values(), *batch.values())
            for number in range(2):  # the optimizer's state is there from the second on
                step(batch, number)
    return memory.peak


class Joined:
    """In place of a codec: what is stored is the joint state."""

    def join(self, stored: dict[str, Tensor], randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        return stored["image"]


def partitioned(losses: Callable[..., dict[str, Tensor]], model: nn.Module) -> Callable[..., dict[str, Tensor]]:
    """`JointObjective.losses` as the forward and the backward graph that torch.compile hands to its code generator, run
    operation by operation. Traced at the first call, also on fake tensors, which torch.compile itself passes by."""
    from torch._dynamo.backends.debugging import boxed_nop
    from torch._functorch.aot_autograd import aot_function
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    def with_tensors(tensors: dict[str, Tensor], **arguments: Tensor) -> dict[str, Tensor]:
        def network(*inputs, **settings):
            return torch.func.functional_call(model, tensors, inputs, settings)

        return losses(network, **arguments)

    graphs = aot_function(
        with_tensors,
        fw_compiler=boxed_nop,
        bw_compiler=boxed_nop,
        partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
        decompositions=select_decomp_table(),
    )
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return lambda _, **arguments: graphs(tensors, **arguments)
