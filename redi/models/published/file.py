"""Checkpoint files of DiT, SiT, REPA and ReDi."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from redi.runtime.paths import local_path
from redi.runtime.weights_files import bare_name, check_tensors, read_weights_file


@dataclass(frozen=True)
class PublishedFile:
    """What a checkpoint file holds."""

    path: Path
    # "ema" (also a bare state dict) and "model": {published name without wrappers' prefixes: tensor} in file order
    weights: dict[str, dict[str, Tensor]]
    args: dict  # the settings of the training program where the file has them, as JSON
    step: int  # 0 where the file does not say

    def state(self, which: str = "ema") -> dict[str, Tensor]:
        """The averaged weights ('ema') or the raw ones ('model'); the others where the file has only those."""
        return self.weights.get(which) or next(iter(self.weights.values()))


def read_published(path: str | Path) -> PublishedFile:
    """Read a .safetensors, .pt or .pth file: a state dict, or {model, ema, opt, args} around it. Nothing is executed.
    Raises ValueError where it is missing, truncated, not named tensors, or has classes that would run code."""
    path = local_path(path)
    if not path.is_file():
        what = "a folder, and the path of a checkpoint file is needed" if path.is_dir() else "no such file"
        raise ValueError(f"{path}: {what}")
    try:
        return _parse(path, read_weights_file(path))
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def _parse(path: Path, content: object) -> PublishedFile:
    if not isinstance(content, Mapping):
        raise ValueError(f"holds a {type(content).__name__}, not a state dict")
    weights = {name: content[name] for name in ("ema", "model") if isinstance(content.get(name), Mapping)}
    args = content.get("args") if weights else None
    steps = [content[name] for name in ("steps", "step", "train_steps") if weights and type(content.get(name)) is int]
    weights = {name: _named_tensors(state) for name, state in (weights or {"ema": content}).items()}
    check_tensors((tensor for state in weights.values() for tensor in state.values()), path.stat().st_size)
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    try:
        args = json.loads(json.dumps({str(key): value for key, value in args.items()}, default=str))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"holds args that are not plain settings ({error})") from None
    return PublishedFile(path, weights, args, max(steps, default=0))


def _named_tensors(state: Mapping) -> dict[str, Tensor]:
    """{name: tensor} without the prefixes of wrappers. Raises ValueError where something is not a tensor."""
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        named = {key[:100]: value for key, value in state.items() if isinstance(key, str)}
        others = [f"{key}: {type(value).__name__}" for key, value in named.items() if not isinstance(value, Tensor)]
        expected = "named tensors, or 'model' and 'ema' with named tensors in them"
        raise ValueError(f"holds no state dict: expected {expected}, got {', '.join(others[:5]) or 'nothing'}")
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if (name := bare_name(key)) in tensors:
            raise ValueError(f"holds {name} twice, with different prefixes")
        tensors[name] = tensor
    return tensors
