"""Sharded training: every process holds a part of each parameter."""

import copyreg
import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from traceback import FrameSummary

from torch import Tensor, nn
from torch import distributed as dist

from redi.runtime.distributed import Processes, as_lost_process
from redi.training.parallel import Parallel, register

# torch sends the traceback of a failed write to all processes. Python 3.14 adds a code object, which cannot be pickled.
copyreg.pickle(FrameSummary, lambda frame: (FrameSummary, (frame.filename, frame.lineno, frame.name)))


@register
class FSDP(Parallel):
    """Fully sharded data parallel (FSDP2, torch's `fully_shard`; Zhao et al., arXiv 2304.11277).

    Weights, averages, gradients and the optimizer state are split equally over the processes. The weights of a block
    are gathered when it runs. Use it for models that do not fit on one device; the paper's models do (docs/scale.md).
    Checkpoints are written by torch.distributed.checkpoint, as whole tensors in safetensors, so any number of processes
    can resume from them.

    Args:
        reshard: free a block's weights after the forward pass and gather them again for the backward pass. This saves
            memory and adds half of the communication.
    """

    whole_graph = False  # weights are gathered between the blocks
    keeps_whole = False

    def __init__(self, *, reshard: bool = True):
        self.reshard = reshard

    def distribute(self, model: nn.Module, processes: Processes, *, compiled: bool) -> None:
        from torch.distributed.fsdp import fully_shard

        device = next(model.parameters()).device
        mesh = dist.init_device_mesh(device.type, (processes.size,))
        for block in getattr(model, "blocks", ()):
            if compiled:
                block.compile(fullgraph=True, dynamic=False)
            fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard)
        fully_shard(model, mesh=mesh, reshard_after_forward=self.reshard)

    def sharing(self, wrapped: nn.Module, model: nn.Module, last: bool) -> AbstractContextManager:
        from torch.distributed.fsdp import FSDPModule

        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(last)
        return nullcontext()

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with as_lost_process():
            return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()}

    def scattered(self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.distributed.tensor import DTensor, distribute_tensor

        parts = dict(tensors)
        for name, tensor in tensors.items():
            to = like.get(name)
            if isinstance(to, DTensor) and tensor.shape == to.shape:
                # No communication: every process has the whole tensor and keeps its part.
                parts[name] = distribute_tensor(tensor.to(to.device), to.device_mesh, to.placements, src_data_rank=None)
        return parts

    def write(self, groups: Mapping[str, Mapping[str, Tensor]], folder: Path, processes: Processes) -> dict[str, Path]:
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

        written = {}
        for name, tensors in groups.items():
            if not any(hasattr(tensor, "device_mesh") for tensor in tensors.values()):
                continue
            place = folder / name
            # Every process writes its parts and rank 0 joins them, all in safetensors, without pickle.
            writer = HuggingFaceStorageWriter(path=str(place), save_distributed=True, enable_consolidation=True)
            try:
                with as_lost_process():
                    checkpoint.save({key: tensor.detach() for key, tensor in tensors.items()}, storage_writer=writer)
            except CheckpointException as error:  # a BaseException; all processes raise it if any cannot write
                if processes.is_first:
                    shutil.rmtree(folder, ignore_errors=True)
                rank, (cause, _) = min(error.failures.items())
                raise OSError(
                    f"{place} not written: on rank {rank}, {type(cause).__name__}: {cause}; earlier checkpoints are "
                    "untouched. Free some space and rerun the same command to resume from the last one"
                ) from error

            def finish(place=place, tensors=tensors) -> str:
                (path,) = place.glob("*.safetensors")
                _write_scalars(path, tensors)
                shutil.rmtree(place / "sharded")
                return path.name

            written[name] = place / processes.on_first(finish)
        return written


def _write_scalars(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write an optimizer's tensors of shape () into a file, because torch 2.11 leaves zeros in their place."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, tensor in tensors.items():
            if tensor.ndim == 0:
                file.seek(8 + length + header[name]["data_offsets"][0])
                file.write(tensor.cpu().numpy().tobytes())
