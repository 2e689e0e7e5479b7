"""The base class of pretrained encoders and autoencoders: a frozen network with published weights."""

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redi.models.published.file import read_published
from redi.runtime.checksums import tensors_sha256
from redi.runtime.device import matmul_precision
from redi.runtime.ranges import check_choice

_in_bfloat16: ContextVar[bool] = ContextVar("in_bfloat16", default=False)  # applies to all pretrained networks


@contextlib.contextmanager
def networks_in(precision: str) -> Iterator[None]:
    """Run pretrained networks in 'tf32' or 'bfloat16' inside this context. 'float32' keeps their own precision."""
    if precision == "float32":
        yield
        return
    before = _in_bfloat16.set(precision == "bfloat16")
    try:
        with matmul_precision(precision):
            yield
    finally:
        _in_bfloat16.reset(before)


def with_defaults(method: Any, first: object, **others: object) -> Callable:
    """Return a method like this one, with other defaults for its first argument and its keywords."""
    itself, *parameters = inspect.signature(method).parameters.values()
    defaults = {parameters[0].name: first} | others
    parameters = [one.replace(default=defaults.get(one.name, one.default)) for one in parameters]
    signature = inspect.Signature([itself, *parameters])

    def call(*args: Any, **settings: Any) -> Any:
        bound = signature.bind(*args, **settings)
        bound.apply_defaults()
        return method(*bound.args, **bound.kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def with_keywords_of(target: Callable) -> Callable:
    """Return a decorator: the signature of a method lists the keywords of `target` in place of its own `**settings`.

    gin, the documentation and editors read the signature.
    """

    def decorate(method: Any) -> Any:
        own = [p for p in inspect.signature(method).parameters.values() if p.kind is not p.VAR_KEYWORD]
        keywords = [p for p in inspect.signature(target).parameters.values() if p.kind is p.KEYWORD_ONLY]
        method.__signature__ = inspect.Signature([*own, *(k for k in keywords if k.name not in {p.name for p in own})])
        return method

    return decorate


class PretrainedNetwork(nn.Module, ABC):
    """A frozen network that reads its weights at first use, or in `load`.

    The network is not part of the state dict, but moves to a device with the module.

    Args:
        weights: path or hub id of the weights, as the subclass defines.
        weights_sha256: expected SHA-256 of the tensors; other weights raise an error. If it is set, training from a
            cache needs no weights.
        precision: 'bfloat16' runs the network under autocast.

    Examples:
        >>> import tempfile
        >>> class Linear(PretrainedNetwork):
        ...     def _weights_path(self): return Path(self.weights)
        ...     def _build(self, path, tensors): return nn.Linear(2, 1, bias=False).requires_grad_(False)
        >>> with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        ...     torch.save({"weight": torch.ones(1, 2)}, file.name)
        ...     frozen = Linear(weights=file.name, weights_sha256=None, precision="float32").network
        >>> frozen.training, frozen.weight.requires_grad
        (False, False)
    """

    anchor: Tensor

    def __init__(self, *, weights: str | None, weights_sha256: str | None, precision: str):
        super().__init__()
        check_choice(self._binding("precision"), precision, ("float32", "bfloat16"))
        self.weights, self.weights_sha256, self.precision = weights, weights_sha256, precision
        self.register_buffer("anchor", torch.empty(0), persistent=False)  # its device is the device of the network
        object.__setattr__(self, "_network", None)  # nn.Module would make it a submodule

    def train(self, mode: bool = True) -> "PretrainedNetwork":
        return super().train(False)

    def load(self) -> None:
        """Read the weights and build the network now. Raises ValueError if they are missing or do not fit."""
        if self._network is None:
            network = self._build(*self._read_weights()).eval().requires_grad_(False)
            object.__setattr__(self, "_network", network.to(self.anchor.device))

    @property
    def network(self) -> Any:
        """The frozen float32 network of timm, diffusers or clean-fid; loaded on first use."""
        self.load()
        return self._network

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self._network is not None:
            self._network.to(self.anchor.device)
        return self

    def _autocast(self) -> torch.autocast:
        enabled = self.precision == "bfloat16" or _in_bfloat16.get()
        return torch.autocast(self.anchor.device.type, torch.bfloat16, enabled=enabled)

    @abstractmethod
    def _weights_path(self) -> Path:
        """Find or download the weights file. Raises ValueError, naming the source, if it is missing."""

    def _tensors_and_sha256(self, path: Path) -> tuple[dict[str, Tensor], str]:
        # The hash covers the names in the file. `_build` removes a prefix from them.
        tensors = read_published(path, names=(), binding=self._binding("weights")).state()
        return tensors, tensors_sha256(tensors)

    @abstractmethod
    def _build(self, path: Path, tensors: dict[str, Tensor]) -> nn.Module:
        """Build the network from the tensors of the file `path`. Raises ValueError if they do not fit."""

    def _read_weights(self) -> tuple[Path, dict[str, Tensor]]:
        path, binding = self._weights_path(), self._binding("weights")
        tensors, digest = self._tensors_and_sha256(path)
        if self.weights_sha256 not in (None, digest):
            what = f"the tensors of {path} have the SHA-256 {digest}, not {self.weights_sha256}"
            raise ValueError(f"{binding}: {what}: use the weights with that hash, or change {binding}_sha256")
        self.weights_sha256 = digest
        return path, tensors

    def _sha256(self) -> str:
        """Return the SHA-256 of the weights. Does not build the network, which a run with a cache does not need."""
        if self.weights_sha256 is None:
            self._read_weights()
        assert self.weights_sha256 is not None
        return self.weights_sha256

    def _binding(self, argument: str) -> str:
        return f"{type(self).__name__}.{argument}"
