"""Initialize a joint model with the weights of a plain model, or of one with fewer groups."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from redi.core.channels import Channels
from redi.core.parts import PREFIX
from redi.fusion import CONDITION
from redi.fusion.merged import Merged, with_one_bias
from redi.models.published.bindings import REVERSED
from redi.models.published.file import read_published
from redi.models.published.parse import parse_layout
from redi.models.published.weights import from_published
from redi.models.transformer import DiffusionTransformer
from redi.runtime.checkpoint import list_checkpoints, newest_good
from redi.runtime.paths import local_path

log = logging.getLogger(__name__)

# These parameters are not copied. They keep their initial values.
NOT_COPIED = ("projector.", "group_embeddings.", "inner_head.", PREFIX)
IN_FUSION = re.compile(r"(?:wide_head\.)?fusion\.\w+\.(\w+)\.")  # the group of an embedding or a head


@torch.no_grad()
def warm_start(model: nn.Module, path: str | Path) -> str:
    """Copy the weights of a smaller model into `model`, set the weights of its new groups to 0, and return a log line.

    New groups are those that the smaller model (the source) lacks. Their patch embeddings and heads are set to 0, and
    so is the last layer of every per-group time embedding. At step 0 the predictions of the other groups therefore
    equal those of the source, for any values of the new groups, and of a condition that the source does not take. A new
    vector keeps its initial embedding: its token changes the attention of the others anyway. Projectors and inner heads
    keep their initial values, and no random number is drawn. The position table is fixed, so the grids may differ.

    Shapes cannot show whether two models use the same process: use SiT weights for a velocity network with the same
    direction of time, and DiT weights for noise prediction. A learned variance is copied if both models have one.

    Args:
        path: a published checkpoint (its EMA weights, if any; see `read_published`), or a run's folder (its newest EMA
            weights).

    Raises ValueError if width, depth, patch size, number of classes or channels differ from the model's, or the fusion
    has separate tokens per group.
    """
    path = local_path(path)
    if not isinstance(model, DiffusionTransformer):
        raise _refusal(path, f"initial weights need a DiffusionTransformer, but the model is a {type(model).__name__}")
    is_run = path.is_dir() and bool(list_checkpoints(path))
    state, source = _of_run(path) if is_run else _of_file(path, model)
    parameters = dict(model.named_parameters())
    if any(model.channels.get(name) != size for name, size in source.items()):
        raise _refusal(path, f"its channels are {dict(source)}, but the model's are {dict(model.channels)}")
    further = [name for name in model.channels if name not in source]
    if not isinstance(model.fusion, Merged) and (further or (not is_run and len(source) > 1)):
        what = f"DiffusionTransformer.fusion = {type(model.fusion).__name__} gives each group separate tokens"
        raise _refusal(path, f"{what}, so the first prediction would differ from the source's: set fusion.Merged")
    state = with_one_bias({"model": state}, parameters)["model"]
    _check(path, state, parameters, model)
    for name, parameter in parameters.items():
        group = match[1] if (match := IN_FUSION.match(name)) else None
        if group in model.channels.vectors and group in further and ".embeddings." in name:
            continue
        if (
            group in further
            or (group == CONDITION and name not in state)
            or (name.startswith("group_embeddings.") and ".mlp.2." in name)
        ):
            parameter.zero_()
        elif not name.startswith(NOT_COPIED) and name in state:  # the source may lack a learned variance
            parameter.copy_(state[name])
    zeros = f"; weights of {', '.join(further)} set to 0" if further else ""
    return f"initial weights of {', '.join(source)} from {path}{zeros}"


def _of_run(path: Path) -> tuple[Mapping[str, Tensor], Channels]:
    good = newest_good(path, ("model", "ema"), set_aside=False)
    assert good is not None  # the folder has checkpoints
    _, tensors, record = good
    return tensors.get("model", {}) | tensors["ema"], Channels(**record["model_arguments"]["channels"])


def _of_file(path: Path, model: DiffusionTransformer) -> tuple[Mapping[str, Tensor], Channels]:
    """Read a published checkpoint. It holds the model's first groups whose channels add up to those of the file."""
    try:
        state = read_published(path).state()
        layout = parse_layout(state, model.grid)
    except ValueError as error:
        raise _refusal(path, f"{'the folder has no checkpoints of a run; ' if path.is_dir() else ''}{error}") from None
    groups: dict[str, int] = {}
    for name, size in model.channels.items():
        groups[name] = size
        if sum(groups.values()) >= layout.in_channels:
            break
    if sum(groups.values()) != layout.in_channels:
        what = f"it has {layout.in_channels} input channels, but the first groups of the model's channels"
        raise _refusal(path, f"{what} {dict(model.channels)} do not add up to this: use other representations")
    if any(prefix.startswith("projectors.") for prefix in layout.projectors) or set(layout.frameworks) <= set(REVERSED):
        log.warning("in the checkpoint %s, time runs from data to noise: set FlowMatching.reversed = True", path)
    learned, block = layout.learn_sigma and len(model.fusion.variance_heads) > 0, model.blocks[0]
    imported = from_published(
        state, channels=groups, learned_variance=learned, num_heads=block.num_heads, grid=model.grid
    )
    return imported.state, imported.runtime["channels"]


def _check(
    path: Path, state: Mapping[str, Tensor], parameters: Mapping[str, Tensor], model: DiffusionTransformer
) -> None:
    classes = len(state["label_embedding.weight"]) - 1
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    if classes != model.num_classes:
        raise _refusal(path, f"it has {classes} classes, but the data have {model.num_classes}: use the same classes")
    if depth != len(model.blocks):
        raise _refusal(path, f"it has {depth} blocks, not {len(model.blocks)}: set DiffusionTransformer.depth")
    in_blocks = ("blocks.", "wide_head.to_condition.")
    theirs, ours = ({n for n in names if n.startswith(in_blocks)} for names in (state, parameters))
    if odd := sorted(theirs ^ ours):
        what = f"its blocks are not those of the model ({type(model.blocks[0]).__name__}): only one has {odd[0]}"
        raise _refusal(path, f"{what}; set DiffusionTransformer.block, its options and head_width to the source's")
    if model.group_times_by == "concatenation" and len(model.group_embeddings):
        binding = "DiffusionTransformer.group_times_by = 'concatenation'"
        raise _refusal(path, f"{binding} leaves no room for its time embedding: set 'sum'")
    for name in ("fusion.embeddings.image.weight", *state):
        if name in parameters and not name.startswith(NOT_COPIED) and state[name].shape != parameters[name].shape:
            shapes = f"{name} is {tuple(state[name].shape)}, but the model's is {tuple(parameters[name].shape)}"
            raise _refusal(path, f"{shapes}: set DiffusionTransformer.size (width, patch size) to the source's")
    if missing := [n for n in parameters if not n.startswith(NOT_COPIED) and not IN_FUSION.match(n) and n not in state]:
        raise _refusal(path, f"it lacks the weights {', '.join(missing[:3])}: use the weights of a model that has them")


def _refusal(path: Path, reason: str) -> ValueError:
    return ValueError(f"train.initial_weights = {str(path)!r}: {reason}")
