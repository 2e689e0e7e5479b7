"""Weights of timm models: which file the hub has, and whether all of them fit."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from redi.models.encoders.architecture import Architecture
from redi.models.published.file import fit_names
from redi.runtime.hub_files import find_hub_file


def hub_weights(architecture: Architecture, binding: str) -> Path:
    """The file of the model's hub page. Raises ValueError where there is none."""
    config = architecture.config
    if config.get("hf_hub_id"):
        # On timm's pages; where a page has a file of another name, its safetensors twin stands beside it.
        name = config.get("hf_hub_filename") or "model.safetensors"
        name = name.replace("open_clip_pytorch_model.bin", "open_clip_model.safetensors")
        return find_hub_file(config["hf_hub_id"], name, binding=binding)
    source = f"download {config['url']} and name it" if config.get("url") else "name a weights file"
    raise ValueError(f"timm's {architecture.name} has no page on the model hub: {source}: {binding} = 'path/to/file'")


def build(architecture: Architecture, path: Path, tensors: Mapping[str, Tensor], binding: str) -> nn.Module:
    """The timm model with these weights, `tensors` being what `path` holds, in timm's or the authors' own format.
    Raises ValueError where the file is not of this model, or not all of it.
    """
    import timm

    tensors = fit_names(tensors, architecture.names)
    # The tensors, not the file: timm's own reader may unpickle, depending on its version.
    overlay = {"state_dict": dict(tensors), **_head(architecture, tensors)}
    options = architecture.options | {"pretrained_cfg_overlay": overlay}
    try:
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten: no draw of the caller's
            network = timm.create_model(architecture.name, pretrained=True, **options)
    except (RuntimeError, AssertionError, KeyError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:500]
        what = f"holds other weights than those of timm's {architecture.name}"
        raise ValueError(f"{binding}: {path} {what}: {reason}") from None
    network.pretrained_cfg.pop("state_dict", None)  # timm keeps a copy there
    if _is_lenient(architecture):
        if missing := sorted(set(network.state_dict()) - set(tensors)):
            raise ValueError(f"{binding}: {path} lacks {', '.join(missing[:5])} of timm's {architecture.name}")
    return network


def _head(architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict:
    """The number of classes in the file: where it differs from the model's, timm loads whatever fits without a word."""
    classifier = architecture.config.get("classifier")
    others = {name for name in architecture.names if not name.startswith(f"{classifier}.")}
    if not isinstance(classifier, str) or not others <= tensors.keys():
        return {}  # another format: timm's conversion knows where its classifier is
    weight = tensors.get(f"{classifier}.weight")
    return {"num_classes": 0 if weight is None else len(weight)}


def _is_lenient(architecture: Architecture) -> bool:
    """Whether timm takes a file for this model that has nothing of it (some names: SigLIP with average pooling)."""
    import timm

    overlay = {"state_dict": {"redi.asks.whether.timm.compares.names": torch.zeros(1)}}
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            timm.create_model(architecture.name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception:  # timm refuses in many ways, a KeyError in its conversion among them
        return False
    return True
