"""Find the weights of timm models on the hub, and load them with a check that all of them fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redi.models.encoders.architecture import Architecture
from redi.models.published.file import fit_names
from redi.runtime.hub_files import find_hub_file


def hub_weights(architecture: Architecture, binding: str) -> Path:
    """Find or download the weights file of a model. Raises ValueError if the hub has none or cannot be reached."""
    config = architecture.config
    if config.get("hf_hub_id"):
        # timm's name of the file. Repositories with another file name also hold it in safetensors format.
        name = config.get("hf_hub_filename") or "model.safetensors"
        name = name.replace("open_clip_pytorch_model.bin", "open_clip_model.safetensors")
        return find_hub_file(config["hf_hub_id"], name, binding=binding)
    source = f"download {config['url']} and set" if config.get("url") else "set"
    raise ValueError(f"timm's {architecture.name} has no weights on the model hub: {source} {binding} = 'path/to/file'")


def build(architecture: Architecture, path: Path, tensors: Mapping[str, Tensor], binding: str) -> Any:
    """Build the timm model with the tensors of the file `path`, in timm's format or the authors' own.

    Raises ValueError if the file belongs to another model or is incomplete.
    """
    import timm

    tensors = fit_names(tensors, architecture.names)
    # Pass the tensors rather than the file: some versions of timm unpickle files.
    overlay = {"state_dict": dict(tensors), **_head(architecture, tensors)}
    options = architecture.options | {"pretrained_cfg_overlay": overlay}
    try:
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten: keep the caller's random state
            network: Any = timm.create_model(architecture.name, pretrained=True, **options)
    except (RuntimeError, AssertionError, KeyError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:500]
        what = f"{path} does not hold the weights of timm's {architecture.name}"
        raise ValueError(f"{binding}: {what}: {reason}") from None
    network.pretrained_cfg.pop("state_dict", None)  # timm keeps a copy there
    missing = sorted(set(network.state_dict()) - set(tensors))
    if missing and _is_lenient(architecture):
        raise ValueError(f"{binding}: {path} lacks {', '.join(missing[:5])} of timm's {architecture.name}")
    return network


def _head(architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict:
    """Return the number of classes in the file. Without it, timm silently skips weights if its own number differs."""
    classifier = architecture.config.get("classifier")
    others = {name for name in architecture.names if not name.startswith(f"{classifier}.")}
    if not isinstance(classifier, str) or not others <= tensors.keys():
        return {}  # another format, whose classifier timm's conversion finds
    weight = tensors.get(f"{classifier}.weight")
    return {"num_classes": 0 if weight is None else len(weight)}


def _is_lenient(architecture: Architecture) -> bool:
    """Whether timm accepts files that lack weights of the model, as for SigLIP with average pooling."""
    import timm

    overlay = {"state_dict": {"redi.asks.whether.timm.compares.names": torch.zeros(1)}}
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            timm.create_model(architecture.name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception:  # timm's conversions raise many kinds of errors, such as KeyError
        return False
    return True
