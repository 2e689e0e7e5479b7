"""Convert the published state dicts of DiT, SiT, REPA and ReDi to this library's model and back, without loss."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redi.core.channels import Channels
from redi.fusion import sincos_positions
from redi.fusion.merged import Merged, with_one_bias
from redi.models.published.layout import Layout, parse_layout, projector_prefixes, published_shapes
from redi.models.transformer import DiffusionTransformer

# Tensors that are copied unchanged: {published stem: this library's stem}, outside and inside of blocks.
OUTSIDE_BLOCKS = {
    "t_embedder.mlp.0": "timestep_embedding.mlp.0", "t_embedder.mlp.2": "timestep_embedding.mlp.2",
    "y_embedder.embedding_table": "label_embedding", "final_layer.adaLN_modulation.1": "final_modulation.1",
}  # fmt: skip
IN_BLOCKS = {
    "attn.qkv": "qkv", "attn.proj": "projection", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2",
    "adaLN_modulation.1": "modulation.1",
}  # fmt: skip
PATCHES, HEAD = "x_embedder.proj", "final_layer.linear"
STORED = ("float32", "float16", "bfloat16")
# Largest tolerated difference between position tables, from rounding; a different table differs by about 1.
TABLE_TOLERANCE = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Imported:
    """A published state dict, converted for `DiffusionTransformer`.

    Examples:
        >>> model = DiffusionTransformer(
        ...     channels=Channels(image=4, dinov2=8), grid=(4, 4), num_classes=10, width=32, depth=2, num_heads=2)
        >>> imported = from_published(to_published(model), num_heads=2)
        >>> all(torch.equal(imported.state[name], tensor) for name, tensor in model.state_dict().items())
        True
    """

    layout: Layout
    runtime: dict  # constructor arguments that the training loop supplies (channels, grid, number of classes, ...)
    settings: dict  # the other constructor arguments (size, ...)
    state: dict[str, Tensor]  # state dict of the model, float32
    # Tensors that the model cannot hold, by published name: unused sigma outputs, all projectors but the first, and a
    # position table that differs by rounding.
    leftovers: dict[str, Tensor]
    dtypes: dict[str, str]  # {published name: stored dtype}, in the order of the file


def from_published(
    state: Mapping[str, Tensor], *, channels: Mapping[str, int] | None = None, learned_variance: bool = False,
    num_heads: int | None = None, grid: tuple[int, int] | None = None,
) -> Imported:  # fmt: skip
    """Convert a state dict {published name: tensor}. `to_published` restores it bit for bit.

    The patch embedding is split by channels into one per group; its bias goes to the image group (see `fusion.Merged`).
    The head is split by its rows (i p + j) O + c.

    Args:
        channels: the groups along C. Default: see `Layout.channels`.
        learned_variance: whether the rows c >= C are variances (DiT) or unused (SiT and related models).
        num_heads, grid: see `Layout.model_settings` and `parse_layout`.

    Raises ValueError for another architecture or number of channels, missing variances, or values that are not finite.
    """
    layout = parse_layout(state, grid)
    groups = layout.channels() if channels is None else Channels(**channels)
    total = layout.in_channels
    if groups.total != total:
        raise ValueError(f"{groups} has {groups.total} channels: must have {total}, as the checkpoint does")
    if learned_variance and not layout.learn_sigma:
        advice = "pass learned_variance=False, or set DDPM.learned_variance = ()"
        raise ValueError(f"the checkpoint's head has {total} outputs per pixel and no learned variance: {advice}")
    runtime: dict[str, Any] = {"channels": groups, "grid": layout.grid, "num_classes": layout.num_classes}
    if learned_variance:
        runtime["variance_groups"] = tuple(groups)
    dtypes = _dtypes(state)
    full = {name: tensor.float() for name, tensor in state.items()}
    ours = {ours: full[name] for name in published_shapes(layout) if (ours := our_name(name))}
    leftovers = _leftover_positions(state["pos_embed"], layout) if "pos_embed" in state else {}
    for name in groups:
        ours[f"fusion.embeddings.{name}.weight"] = full[f"{PATCHES}.weight"][:, groups.slice(name)].clone()
    ours["fusion.embeddings.image.bias"] = full[f"{PATCHES}.bias"]
    for part in ("weight", "bias"):
        rows = full[f"{HEAD}.{part}"].unflatten(0, (layout.patch_size**2, -1))  # (p p, O, D) or (p p, O)
        heads = {f"fusion.heads.{name}.{part}": size for name, size in groups.items()}
        if learned_variance:
            heads |= {f"fusion.variance_heads.{name}.{part}": size for name, size in groups.items()}
        elif layout.learn_sigma:
            leftovers[f"{HEAD}.{part}"] = rows[:, total:].flatten(0, 1)
            rows = rows[:, :total]
        parts = zip(heads, rows.split(list(heads.values()), dim=1), strict=True)
        ours |= {name: head.flatten(0, 1) for name, head in parts}
    for index, prefix in enumerate(layout.projectors):
        projector = {name.removeprefix(prefix): full[name] for name in state if name.startswith(prefix)}
        if index == 0:
            ours |= {f"projector.{name}": tensor for name, tensor in projector.items()}
            runtime["alignment_dim"] = len(projector["4.weight"])
        else:
            leftovers |= {name: state[name] for name in state if name.startswith(prefix)}
    return Imported(layout, runtime, layout.model_settings(num_heads), ours, leftovers, dtypes)


def to_published(
    model: DiffusionTransformer, weights: Mapping[str, Tensor] | None = None, *,
    leftovers: Mapping[str, Tensor] | None = None, dtypes: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Convert a model to the published layout: the inverse of `from_published`, bit for bit with leftovers and dtypes.

    Args:
        model: a model with merged tokens, or with the image group only.
        weights: weights to use instead of the model's, such as an EMA, by this library's names.
        leftovers, dtypes: those of `Imported`. Default: the model's own tensors and dtypes, in the published order.
    """
    _check_exportable(model)
    state_dict = model.state_dict()
    merged = state_dict | with_one_bias({"": weights or {}}, state_dict)[""]
    ours = {name: tensor.cpu() for name, tensor in merged.items()}
    channels, p = model.channels, model.fusion.patch_size
    leftovers = leftovers or {}
    state = {"pos_embed": leftovers.get("pos_embed", model.fusion.positions.cpu()[None])}  # (1, T, D)
    state[f"{PATCHES}.weight"] = torch.cat([ours[f"fusion.embeddings.{name}.weight"] for name in channels], dim=1)
    state[f"{PATCHES}.bias"] = ours["fusion.embeddings.image.bias"]
    names = [f"heads.{name}" for name in channels] + [f"variance_heads.{name}" for name in model.fusion.variance_heads]
    for part in ("weight", "bias"):
        heads = [ours[f"fusion.{name}.{part}"] for name in names]
        heads += [leftovers[f"{HEAD}.{part}"]] if f"{HEAD}.{part}" in leftovers else []
        rows = [head.unflatten(0, (p * p, -1)) for head in heads]  # each (p p, channels, ...)
        state[f"{HEAD}.{part}"] = torch.cat(rows, dim=1).flatten(0, 1)
    layout = Layout(
        width=len(state[f"{PATCHES}.bias"]), depth=len(model.blocks), patch_size=p, in_channels=channels.total,
        out_channels=len(state[f"{HEAD}.bias"]) // p**2, patch_grid=model.fusion.patch_grid,
        num_classes=model.num_classes, mlp_hidden=len(ours["blocks.0.mlp.0.bias"]),
    )  # fmt: skip
    state = {
        name: ours[ours_name] if (ours_name := our_name(name)) else state[name] for name in published_shapes(layout)
    }
    prefix = (projector_prefixes(dtypes or ()) or ("projector.",))[0]
    for name in (name for name in ours if name.startswith("projector.")):
        state[prefix + name.removeprefix("projector.")] = ours[name]
    state |= {name: tensor for name, tensor in leftovers.items() if name not in state}
    if dtypes is None:
        return {name: tensor.contiguous() for name, tensor in state.items()}
    if "pos_embed" not in dtypes:  # the imported file had none
        del state["pos_embed"]
    if differing := sorted(set(dtypes) ^ set(state)):
        what = f"the imported checkpoint and this model have different tensors: {', '.join(differing[:3])}"
        raise ValueError(f"{what}: export without dtypes=")
    return {name: state[name].to(getattr(torch, dtype)).contiguous() for name, dtype in dtypes.items()}


def our_name(published: str) -> str | None:
    """Return this library's name of a published tensor that is not split; None for the others."""
    stem, _, part = published.rpartition(".")
    if match := re.fullmatch(r"(blocks\.\d+)\.(.+)", stem):
        return f"{match[1]}.{IN_BLOCKS[match[2]]}.{part}"
    return f"{OUTSIDE_BLOCKS[stem]}.{part}" if stem in OUTSIDE_BLOCKS else None


def _dtypes(state: Mapping[str, Tensor]) -> dict[str, str]:
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()}
    if odd := [f"{name}: {dtype}" for name, dtype in dtypes.items() if dtype not in STORED]:
        raise ValueError(f"the checkpoint holds {', '.join(odd[:3])}: must be {', '.join(STORED)}")
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(f"the checkpoint contains NaN or infinite values in {', '.join(broken[:3])}")
    return dtypes


def _leftover_positions(stored: Tensor, layout: Layout) -> dict[str, Tensor]:
    ours = sincos_positions(layout.patch_grid, layout.width)[None]
    difference = float((stored.float() - ours).abs().max())
    if not difference <= TABLE_TOLERANCE[str(stored.dtype).removeprefix("torch.")]:
        what = f"the checkpoint's pos_embed differs by up to {difference:.2g} from DiT's fixed 2-D sin-cos table"
        raise ValueError(f"{what}: learned or reordered positions are not supported")
    return {} if torch.equal(stored, ours.to(stored.dtype)) else {"pos_embed": stored}


def _check_exportable(model: DiffusionTransformer) -> None:
    if not isinstance(model, DiffusionTransformer):
        reason = f"is a {type(model).__name__}, not a DiffusionTransformer"
    elif len(model.channels) > 1 and not isinstance(model.fusion, Merged):
        reason = f"has {type(model.fusion).__name__} tokens, not merged ones with one patch embedding and one head"
    elif len(model.group_embeddings):
        reason = "embeds the time of every group (group_timesteps)"
    elif model.inner_layer is not None:
        reason = "has an inner head (JointObjective.inner_layer)"
    elif model.projector is not None and not isinstance(model.projector, nn.Sequential):
        reason = "has a convolution, or several projectors, for REPA"
    elif len(model.fusion.variance_heads) not in (0, len(model.channels)):
        reason = "has a learned variance for some groups only"
    else:
        return
    raise ValueError(f"this model cannot be exported to the published layout because it {reason}")
