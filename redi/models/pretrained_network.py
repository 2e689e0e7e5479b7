"""A frozen network whose weights can be had elsewhere: what the pretrained encoders and autoencoders share."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FunctionType

import torch
from torch import Tensor, nn

from redi.models.published.file import read_published
from redi.runtime.checksums import tensors_sha256
from redi.runtime.device import matmul_precision

_lowered: ContextVar[bool] = ContextVar("lowered", default=False)  # whether all of them run in bfloat16


@contextlib.contextmanager
def networks_in(precision: str) -> Iterator[None]:
    """Context that runs float32 pretrained networks in 'tf32' or 'bfloat16'; 'float32' changes nothing."""
    if precision == "float32":
        yield
        return
    before = _lowered.set(precision == "bfloat16")
    try:
        with matmul_precision(precision):
            yield
    finally:
        _lowered.reset(before)


def with_defaults(method: Callable, first: object, **others: object) -> Callable:
    """The same method with other defaults, of the first argument and of keywords, which its signature shows."""
    copy = FunctionType(method.__code__, method.__globals__, method.__name__, (first,), method.__closure__)
    copy.__kwdefaults__ = (method.__kwdefaults__ or {}) | others
    copy.__annotations__ = method.__annotations__
    return copy


class PretrainedNetwork(nn.Module, ABC):
    """Reads its weights at first use, or by `load`. The network is not in the state dict, but follows `.to(device)`.

    Args:
        weights: where they are, as the subclass understands it.
        weights_sha256: of the tensors; others are refused. With it, training from a cache needs no weights.
        precision: 'bfloat16' runs the network under autocast.
    """

    def __init__(self, *, weights: str | None, weights_sha256: str | None, precision: str):
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"{self._binding('precision')} = {precision!r}: it is 'float32' or 'bfloat16'")
        self.weights, self.weights_sha256, self.precision = weights, weights_sha256, precision
        self.register_buffer("anchor", torch.empty(0), persistent=False)  # tells the device, weights or not
        object.__setattr__(self, "_network", None)  # past nn.Module, which would make it a submodule

    def train(self, mode: bool = True) -> "PretrainedNetwork":
        return super().train(False)

    def load(self) -> None:
        if self._network is None:
            network = self._build(*self._read_weights()).eval().requires_grad_(False)
            object.__setattr__(self, "_network", network.to(self.anchor.device))

    @property
    def network(self) -> nn.Module:
        """The network, frozen, float32; read on first use. Raises ValueError as `load` does."""
        self.load()
        return self._network

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self._network is not None:
            self._network.to(self.anchor.device)
        return self

    def _autocast(self) -> torch.autocast:
        lowered = self.precision == "bfloat16" or _lowered.get()
        return torch.autocast(self.anchor.device.type, torch.bfloat16, enabled=lowered)

    @abstractmethod
    def _weights_path(self) -> Path:
        """The weights file. Raises ValueError, which says where to get it, if there is none."""

    def _tensors_and_sha256(self, path: Path) -> tuple[dict[str, Tensor], str]:
        # The hash depends on the names in the file: `_build` takes a prefix off.
        tensors = read_published(path, names=(), binding=self._binding("weights")).state()
        return tensors, tensors_sha256(tensors)

    @abstractmethod
    def _build(self, path: Path, tensors: dict[str, Tensor]) -> nn.Module:
        """The network with these weights, read from `path`. Raises ValueError if they belong to another."""

    def _read_weights(self) -> tuple[Path, dict[str, Tensor]]:
        path, binding = self._weights_path(), self._binding("weights")
        tensors, digest = self._tensors_and_sha256(path)
        if self.weights_sha256 not in (None, digest):
            raise ValueError(
                f"{binding}: the tensors of {path} have the SHA-256 {digest}, not {self.weights_sha256}: other weights "
                f"than {binding}_sha256 says, or than were there before"
            )
        self.weights_sha256 = digest
        return path, tensors

    def _known_sha256(self) -> str:
        """The hash of the weights, without building the network, which a cached run never needs."""
        if self.weights_sha256 is None:
            self._read_weights()
        return self.weights_sha256

    def _binding(self, argument: str) -> str:
        return f"{type(self).__name__}.{argument}"
