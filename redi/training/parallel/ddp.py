"""Data parallel training: every process holds the whole model."""

from contextlib import AbstractContextManager, nullcontext

from torch import nn

from redi.runtime.distributed import Processes
from redi.training.parallel import Parallel, register


@register
class DDP(Parallel):
    """DistributedDataParallel: gradients are averaged during the backward pass (Li et al., arXiv 2006.15704).

    Args:
        bucket_mib: size of the buckets in which gradients are sent, in MiB.
    """

    needs_every_gradient = True  # without it, every step would wait for the device (find_unused_parameters)

    def __init__(self, *, bucket_mib: float = 25.0):
        if not bucket_mib > 0:
            raise ValueError(f"DDP.bucket_mib = {bucket_mib} must be greater than 0")
        self.bucket_mib = bucket_mib

    def distribute(self, model: nn.Module, processes: Processes, *, compiled: bool) -> None:
        pass  # all processes built the model from the same seed, and DistributedDataParallel compares shapes

    def wrap(self, forward: nn.Module, model: nn.Module) -> nn.Module:
        device = next(model.parameters()).device
        return nn.parallel.DistributedDataParallel(
            forward,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # no buffer changes during training
            gradient_as_bucket_view=True,
            bucket_cap_mb=self.bucket_mib,
        )

    def sharing(self, wrapped: nn.Module, model: nn.Module, last: bool) -> AbstractContextManager:
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
        return nullcontext() if last else wrapped.no_sync()
