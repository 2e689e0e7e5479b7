"""The losses of a step as the graphs that torch.compile makes of them, to count their memory."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


def traced(losses: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """`JointObjective.losses` as the forward and the backward graph that torch.compile hands to its code generator, run
    operation by operation: what is cheap is computed again in the backward pass. Traced at the first call, also on fake
    tensors, which torch.compile itself passes by. Fused kernels store less, so this is a bound from above."""
    from torch._dynamo.backends.debugging import boxed_nop
    from torch._functorch.aot_autograd import aot_function
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    def with_tensors(model: nn.Module, tensors: dict[str, Tensor], **arguments: Tensor) -> dict[str, Tensor]:
        def network(*inputs, **settings):
            return torch.func.functional_call(model, tensors, inputs, settings)

        return losses(network, **arguments)

    graphs: list[Callable] = []

    def call(model: nn.Module, **arguments: Tensor) -> dict[str, Tensor]:
        if not graphs:
            graphs.append(
                aot_function(
                    partial(with_tensors, model),
                    fw_compiler=boxed_nop,
                    bw_compiler=boxed_nop,
                    partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
                    decompositions=select_decomp_table(),
                )
            )
        return graphs[0]({**dict(model.named_parameters()), **dict(model.named_buffers())}, **arguments)

    return call
