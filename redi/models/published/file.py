"""Checkpoint files of DiT, SiT, REPA and ReDi, read without running any code in them."""

import argparse
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from redi.runtime.archives import check_tensors, check_unpacked_size

WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


@dataclass(frozen=True)
class PublishedFile:
    """What a checkpoint file holds.

    Attributes:
        weights: "ema" and "model", as far as they are there, each {published name: tensor} in the file's order without
            the prefixes of wrappers. A bare state dict, of which nothing is said, counts as "ema".
        args: the settings of the training program where the file has them, as JSON.
        step: training steps; 0 where the file does not say.
    """

    path: Path
    weights: dict[str, dict[str, Tensor]]
    args: dict
    step: int

    def state(self, which: str = "ema") -> dict[str, Tensor]:
        """The averaged weights ('ema', else what there is) or the raw ones ('model', else what there is)."""
        return self.weights.get(which) or next(iter(self.weights.values()))


def read_published(path: str | Path) -> PublishedFile:
    """Reads a .safetensors file, or a .pt / .pth file: a state dict, or {model, ema, opt, args} around it.

    Nothing in the file is executed: safetensors, or PyTorch's format with weights_only, where beside tensors and plain
    values only an argparse.Namespace is let in.

    Raises:
        ValueError: no such file, truncated, something else than named tensors, or classes that would run code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "a folder, and the path of a checkpoint file is needed" if path.is_dir() else "no such file"
        raise ValueError(f"{path}: {what}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    weights = {name: content[name] for name in ("ema", "model") if isinstance(content.get(name), Mapping)}
    args = content.get("args") if weights else None
    steps = [content[name] for name in ("steps", "step", "train_steps") if weights and type(content.get(name)) is int]
    weights = {name: _unwrapped(path, state) for name, state in (weights or {"ema": content}).items()}
    try:
        check_tensors((tensor for state in weights.values() for tensor in state.values()), path.stat().st_size)
    except ValueError as error:
        raise ValueError(f"{path} holds {error}") from None
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    try:
        plain = json.loads(json.dumps({str(key): value for key, value in args.items()}, default=str))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: its args are no plain settings ({error})") from None
    return PublishedFile(path, weights, plain, max(steps, default=0))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from None


def _read_pickled(path: Path):
    in_zip = False
    try:
        check_unpacked_size(path)
        in_zip = zipfile.is_zipfile(path)  # PyTorch's format since 1.6, which can be mapped instead of read
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=in_zip)
    except Exception as error:  # a malformed pickle can raise anything
        if classes := _refused_classes(path, str(error), in_zip):
            raise ValueError(
                f"{path} was refused: beside tensors it holds {', '.join(classes)}, and reading such objects can run "
                "code. Nothing was run. If you trust it, load it where it was made and save the state dict alone"
            ) from None
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if "weights_only" in reason:  # torch's advice to switch it off does not belong here
            reason = "it is a pickle of something else"
        raise ValueError(
            f"{path} is truncated, or no checkpoint that PyTorch wrote: {reason}. Download it again"
        ) from None


def _refused_classes(path: Path, message: str, in_zip: bool) -> list[str]:
    """The classes and functions in a pickle that are no tensors or plain values."""
    named = set(re.findall(r"GLOBAL (\S+) was not an allowed", message))
    named |= set(re.findall(r"Trying to load unsupported GLOBAL (\S+)", message))
    if named and in_zip:
        try:
            named |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except Exception:  # the first one is enough for the message
            pass
    return sorted(named - {"argparse.Namespace"})


def _unwrapped(path: Path, state: Mapping) -> dict[str, Tensor]:
    """{name: tensor} without the prefixes that wrappers add. Raises ValueError where something is no tensor."""
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        others = [f"{key}: {type(value).__name__}" for key, value in state.items() if not isinstance(value, Tensor)]
        raise ValueError(
            f"{path} holds no state dict: expected named tensors, or 'model' and 'ema' with named tensors in them, got "
            f"{', '.join(others[:5]) or 'nothing'}"
        )
    found = {}
    for key, tensor in state.items():
        name = key.replace("_orig_mod.", "")
        while name.startswith(WRAPPERS):
            name = name.partition(".")[2]
        if name in found:
            raise ValueError(f"{path} holds {name} twice, with different prefixes")
        found[name] = tensor
    return found
