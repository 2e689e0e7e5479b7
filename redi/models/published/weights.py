"""Convert the published state dicts of DiT, SiT and related models to this library's model and back, without loss."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from redi.core.channels import Channels
from redi.fusion.merged import Merged, with_one_bias
from redi.models.published.layout import Layout, projector_prefixes
from redi.models.published.parse import LAYOUTS, parse_layout
from redi.models.published.tensors import to_ours, to_theirs
from redi.models.transformer import DiffusionTransformer

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
    # Tensors that the model cannot hold, by published name: unused sigma outputs, all projectors but the first, and
    # tables that differ by rounding.
    leftovers: dict[str, Tensor]
    dtypes: dict[str, str]  # {published name: stored dtype}, in the order of the file


def from_published(
    state: Mapping[str, Tensor], *, channels: Mapping[str, int] | None = None, learned_variance: bool = False,
    num_heads: int | None = None, grid: tuple[int, int] | None = None,
) -> Imported:  # fmt: skip
    """Convert a state dict {published name: tensor}. `to_published` restores it bit for bit.

    Args:
        channels, learned_variance: see `to_ours`. Default of the groups: see `Layout.channels`.
        num_heads, grid: see `Layout.model_settings` and `parse_layout`.

    Raises ValueError for another architecture or number of channels, missing variances, or values that are not finite.
    """
    layout = parse_layout(state, grid)
    groups = layout.channels() if channels is None else channels
    groups = groups if isinstance(groups, Channels) else Channels(**groups)
    total = layout.in_channels
    if (number := sum(groups[name] for name in groups.maps)) != total:
        raise ValueError(f"{groups} has {number} channels: must have {total}, as the checkpoint does")
    if [*groups.vectors.values()] != (lengths := [*layout.example_channels().vectors.values()]):
        raise ValueError(f"{groups}: must have vectors of the lengths {lengths}, as the checkpoint does")
    if learned_variance and not layout.learn_sigma:
        advice = "pass learned_variance=False, or set DDPM.learned_variance = ()"
        raise ValueError(f"the checkpoint's head has {total} outputs per pixel and no learned variance: {advice}")
    runtime: dict[str, Any] = {"channels": groups, "grid": layout.grid, "num_classes": layout.num_classes}
    if learned_variance:
        runtime["variance_groups"] = tuple(groups)
    dtypes = _dtypes(state)
    full = {name: tensor.float() for name, tensor in state.items()}
    names = layout.names(groups, layout.num_blocks)
    ours, leftovers = to_ours(full, names, groups, learned_variance=learned_variance)
    leftovers |= _leftover_tables(state, layout)
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
    kind = _kind(model)
    state_dict = model.state_dict()
    merged = state_dict | with_one_bias({"": weights or {}}, state_dict)[""]
    ours = {name: tensor.cpu() for name, tensor in merged.items()}
    leftovers = leftovers or {}
    state = to_theirs(ours, kind.names(model.channels, len(model.blocks)), model.channels, leftovers)
    layout = parse_layout(state, model.grid)
    layout = replace(layout, **layout.heads_of(model))
    state = {name: leftovers.get(name, table) for name, table in layout.tables().items()} | state
    prefix = (projector_prefixes(dtypes or ()) or (kind.projector,))[0]
    for name in (name for name in ours if name.startswith("projector.")):
        state[prefix + name.removeprefix("projector.")] = ours[name]
    state |= {name: tensor for name, tensor in leftovers.items() if name not in state}
    if dtypes is None:
        return {name: tensor.contiguous() for name, tensor in state.items()}
    for name in layout.tables().keys() - dtypes.keys():  # the imported file had none
        del state[name]
    if differing := sorted(set(dtypes) ^ set(state)):
        what = f"the imported checkpoint and this model have different tensors: {', '.join(differing[:3])}"
        raise ValueError(f"{what}: export without dtypes=")
    return {name: state[name].to(getattr(torch, dtype)).contiguous() for name, dtype in dtypes.items()}


def _dtypes(state: Mapping[str, Tensor]) -> dict[str, str]:
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()}
    if odd := [f"{name}: {dtype}" for name, dtype in dtypes.items() if dtype not in STORED]:
        raise ValueError(f"the checkpoint holds {', '.join(odd[:3])}: must be {', '.join(STORED)}")
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(f"the checkpoint contains NaN or infinite values in {', '.join(broken[:3])}")
    return dtypes


def _leftover_tables(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return the stored tables that differ from ours by rounding. Raises ValueError for other tables."""
    leftovers = {}
    for name, ours in layout.tables().items():
        if (stored := state.get(name)) is None or torch.equal(stored, ours.to(stored.dtype)):
            continue
        difference = float((stored.float() - ours).abs().max())
        if not difference <= TABLE_TOLERANCE[str(stored.dtype).removeprefix("torch.")]:
            what = f"the checkpoint's {name} differs by up to {difference:.2g} from the fixed table of {layout.title}"
            raise ValueError(f"{what}: learned or reordered positions are not supported")
        leftovers[name] = stored
    return leftovers


def _kind(model: DiffusionTransformer) -> type[Layout]:
    """Return the layout that can store a model. Raises ValueError, with the reason, if there is none."""
    if not isinstance(model, DiffusionTransformer):
        reason = f"is a {type(model).__name__}, not a DiffusionTransformer"
    elif len(model.channels) > 1 and not isinstance(model.fusion, Merged):
        reason = f"has {type(model.fusion).__name__} tokens, not merged ones with one patch embedding and one head"
    elif model.inner_layer is not None:
        reason = "has an inner head (JointObjective.inner_layer)"
    elif model.feature_shape is not None:
        reason = "takes predicted features (JointObjective.predicted_features)"
    elif model.projector is not None and not isinstance(model.projector, nn.Sequential):
        reason = "has a convolution, or several projectors, for REPA"
    elif len(model.fusion.variance_heads) not in (0, len(model.channels)):
        reason = "has a learned variance for some groups only"
    elif kind := next((kind for kind in LAYOUTS if kind.of_model(model)), None):
        return kind
    elif len(model.channels.vectors) > 1:
        reason = f"has {len(model.channels.vectors)} vectors, and published models at most one"
    elif len(model.group_embeddings):
        reason = "embeds the time of every group (group_timesteps)"
    else:
        reason = f"has {type(model.blocks[0]).__name__} blocks with options that no published model has"
    raise ValueError(f"this model cannot be exported to the published layout because it {reason}")
