"""The base class of trained reducers that others have published: their weights and statistics files."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from redi.models.pretrained_network import with_keywords_of
from redi.models.published.file import read_published
from redi.models.reducers.trained import TrainedReducer
from redi.runtime.checksums import tensors_sha256


class Compressor(TrainedReducer):
    """A trained reducer that can read a published file instead of training.

    The output of published compressors is not normalised. With scale='raw', or `code_statistics`, the reducer is ready
    at once; with scale='unit_rms', `fit` measures mean and scale of the code, without training.

    Args:
        rank, hidden: R and the hidden channels; those of the file, if `weights` is set.
        weights: a published weights file (.pt, .pth, .safetensors).
        statistics: a file {'mean', 'std'} (E,) that standardises the features before the published weights.
        code_statistics: a file {'mean', 'std'} (R,) that standardises the published code, in place of `scale`.
        others: see `TrainedReducer`.

    Examples:
        >>> class Linear(Compressor):
        ...     names = {"encoder.": "encode.", "decoder.": "decode."}
        ...     def _build(self, width):
        ...         self.encode = nn.Sequential(nn.Conv2d(width, self.rank, 1))
        ...         self.decode = nn.Sequential(nn.Conv2d(self.rank, width, 1))
        >>> Linear(rank=4, hidden=4).fitted  # without a file, it is fitted
        False
    """

    names: ClassVar[Mapping[str, str]]  # {part of a published name: part of ours}, replaced in this order
    optional: tuple[str, ...] = ()  # endings of names that a published file may lack; they are zero
    needs_statistics = False  # True: published weights are useless without the statistics of their features

    @with_keywords_of(TrainedReducer.__init__)
    def __init__(
        self, rank: int = 16, *, hidden: int = 256, patience: int | None = 5, weights: str | None = None,
        statistics: str | None = None, code_statistics: str | None = None, path: str | None = None, **settings: Any,
    ):  # fmt: skip
        super().__init__(rank=rank, hidden=hidden, patience=patience, **settings)
        name = type(self).__name__
        if weights is not None:
            if statistics is None and self.needs_statistics:
                what = "must be the published file with mean and std of the features, which belongs to the weights"
                raise ValueError(f"{name}.statistics = None: {what}")
            self._take_published(weights)
            if statistics is not None:
                self.mean, self.std = read_statistics(statistics, len(self.mean), f"{name}.statistics")
            self.code_rms = torch.ones(()) if self.scale == "raw" else torch.empty(0)  # empty: `fit` measures it
            if code_statistics is not None:
                self.code_mean, self.code_rms = read_statistics(code_statistics, rank, f"{name}.code_statistics")
                self.scale = "statistics"
            self.weights_sha256 = tensors_sha256(self.state_dict())
        elif statistics or code_statistics:
            raise ValueError(f"{name}.weights = None: must be a file, to which the statistics belong")
        if path is not None:
            self.restore(path)

    def _take_published(self, path: str) -> None:
        """Build the networks of a published file. Raises ValueError unless it has exactly their tensors."""
        name = type(self).__name__
        tensors = read_published(path, names=(), binding=f"{name}.weights").state()
        for part, ours in self.names.items():
            tensors = {tensor_name.replace(part, ours): tensor for tensor_name, tensor in tensors.items()}
        try:
            sizes = {"rank": tensors["decode.0.weight"].shape[1], "hidden": tensors["decode.0.weight"].shape[0]}
            width = tensors["encode.0.weight"].shape[1]
            for argument, value in sizes.items():
                if getattr(self, argument) != value:
                    raise ValueError(f"{name}.{argument} = {getattr(self, argument)}: must be {value}, as in {path}")
            self.mean, self.std = torch.zeros(width), torch.ones(width)
            with torch.random.fork_rng(devices=[]):  # the weights are overwritten: keep the caller's random state
                self._build(width)
            networks = nn.ModuleDict({"encode": self.encode, "decode": self.decode})
            zeros = {n: torch.zeros_like(t) for n, t in networks.state_dict().items() if n.endswith(self.optional)}
            networks.load_state_dict(zeros | tensors)
        except (KeyError, IndexError, RuntimeError) as error:
            reason = f"Missing key {error}" if isinstance(error, KeyError) else str(error).partition("ModuleDict:")[2]
            for part, ours in self.names.items():
                reason = reason.replace(ours, part)
            what = f"must hold the tensors of a {name} of these settings: {' '.join(reason.split())[:300]}"
            raise ValueError(f"{name}.weights: {path} {what}") from None
        self.eval().requires_grad_(False)


def read_statistics(path: str, size: int, binding: str) -> tuple[Tensor, Tensor]:
    """Return mean and std (size,) float32 of a file {'mean', 'std'}. Raises ValueError if it holds something else."""
    tensors = read_published(path, names=(), binding=binding).state()
    if not {"mean", "std"} <= tensors.keys() or any(tensors[key].numel() != size for key in ("mean", "std")):
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        raise ValueError(f"{binding}: {path} holds {str(shapes)[:300]}: must be mean and std of {size} channels")
    mean, std = (tensors[key].detach().float().flatten() for key in ("mean", "std"))
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise ValueError(f"{binding}: {path}: mean and std must be finite, and std positive")
    return mean, std
