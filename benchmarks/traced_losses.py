"""Trace the losses of a step into the graphs that torch.compile makes, to count their memory."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


def traced(losses: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """Return `JointObjective.losses` as torch.compile's forward and backward graphs, run operation by operation.

    Cheap operations are recomputed in the backward pass, as in the compiled code. The graphs are traced at the first
    call. Unlike torch.compile, this also works with fake tensors. Fused kernels store less, so the memory is an upper
    bound.
    """
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
