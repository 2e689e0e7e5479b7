"""Beginning a joint model with the weights of a plain one, or of one with fewer groups."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.fusion.merged import Merged, with_one_bias
from redi.models.published.file import read_published
from redi.models.published.layout import parse_layout
from redi.models.published.weights import from_published
from redi.models.transformer import DiffusionTransformer
from redi.runtime.checkpoint import list_checkpoints, newest_good
from redi.runtime.paths import local_path

log = logging.getLogger(__name__)

# Not taken over: these keep their initial values, whatever the source has of them.
KEPT = ("projector.", "group_embeddings.")


def begin_with(model: DiffusionTransformer, path: str | Path | None, run_dir: Path) -> None:
    """`warm_start` for a run that has no checkpoint yet; a resumed one has weights of its own."""
    if path is not None and not list_checkpoints(run_dir):
        log.info("%s", warm_start(model, path))


@torch.no_grad()
def warm_start(model: DiffusionTransformer, path: str | Path) -> str:
    """Copies the weights of a smaller model into `model`, and zeros into what belongs to its further groups.

    The patch embeddings and heads of further groups, and the last layer of every embedding of a group's own time, are
    0: at step 0 the prediction of the source's groups is the source's, whatever the others hold. Projectors keep their
    initial values; no random number is drawn. The position table is fixed, so the grids may differ.

    No shape tells whether both are made for one process: use a SiT's weights for a velocity network whose time runs the
    same way, a DiT's for a noise prediction. A learned variance is taken over where both have it.

    Args:
        path: a published checkpoint (see `read_published`; its averages, if any), or a run's folder: its newest EMA.

    Returns the line that says what was taken over. Raises ValueError for another width, depth, patch size, number of
    classes or channels than the model's, or separate tokens.
    """
    path = local_path(path)
    if not isinstance(model, DiffusionTransformer):
        raise _refusal(path, f"only a DiffusionTransformer begins with other weights, not a {type(model).__name__}")
    is_run = path.is_dir() and bool(list_checkpoints(path))
    state, source = _of_run(path) if is_run else _of_file(path, model)
    own = dict(model.named_parameters())
    if any(model.channels.get(name) != size for name, size in source.items()):
        raise _refusal(path, f"it has the channels {dict(source)}, the model {dict(model.channels)}")
    further = [name for name in model.channels if name not in source]
    if not isinstance(model.fusion, Merged) and (further or (not is_run and len(source) > 1)):
        what = f"DiffusionTransformer.fusion = {type(model.fusion).__name__} gives every group tokens of its own"
        raise _refusal(path, f"{what}, so the first prediction would not be the source's: set fusion.Merged")
    state = with_one_bias({"model": state}, own)["model"]
    _check(path, state, own, model)
    for name, parameter in own.items():
        group = name.split(".")[2] if name.startswith("fusion.") else None
        if group in further or (name.startswith("group_embeddings.") and ".mlp.2." in name):
            parameter.zero_()
        elif not name.startswith(KEPT) and name in state:  # without: a variance that the source has not learned
            parameter.copy_(state[name])
    return f"begins with {', '.join(source)} of {path}" + (f"; {', '.join(further)} with zeros" if further else "")


def _of_run(path: Path) -> tuple[Mapping[str, Tensor], Channels]:
    _, tensors, record = newest_good(path, ("model", "ema"), set_aside=False)
    return tensors.get("model", {}) | tensors["ema"], Channels(**record["model_arguments"]["channels"])


def _of_file(path: Path, model: DiffusionTransformer) -> tuple[Mapping[str, Tensor], Channels]:
    """The groups are the model's first ones that together have as many channels as the file."""
    try:
        state = read_published(path).state()
        layout = parse_layout(state, model.grid)
    except ValueError as error:
        raise _refusal(path, f"{'no checkpoints of a run there; ' if path.is_dir() else ''}{error}") from None
    groups: dict[str, int] = {}
    for name, size in model.channels.items():
        groups[name] = size
        if sum(groups.values()) >= layout.in_channels:
            break
    if sum(groups.values()) != layout.in_channels:
        count = f"{layout.in_channels} input channels"
        raise _refusal(path, f"it has {count}, of which the model's {dict(model.channels)} can make nothing")
    if any(prefix.startswith("projectors.") for prefix in layout.projectors):
        log.warning("%s is REPA's, whose time runs from data to noise: set FlowMatching.reversed = True", path)
    learned, num_heads = layout.learn_sigma and len(model.fusion.variance_heads) > 0, model.blocks[0].num_heads
    imported = from_published(state, channels=groups, learned_variance=learned, num_heads=num_heads, grid=model.grid)
    return imported.state, imported.runtime["channels"]


def _check(path: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor], model: DiffusionTransformer) -> None:
    """Raises ValueError where the source is not of the model's shapes."""
    classes = len(state["label_embedding.weight"]) - 1
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    if classes != model.num_classes:
        raise _refusal(path, f"it knows {classes} classes, the data have {model.num_classes}: the labels mean others")
    if depth != len(model.blocks):
        raise _refusal(path, f"it has {depth} blocks, the model {len(model.blocks)}: set DiffusionTransformer.depth")
    for name in ("fusion.embeddings.image.weight", *state):
        if name in own and not name.startswith(KEPT) and state[name].shape != own[name].shape:
            shapes = f"{name} is {tuple(state[name].shape)} there and {tuple(own[name].shape)} in the model"
            raise _refusal(path, f"{shapes}: set DiffusionTransformer.size (width, patch size) to that of the source")
    if lacking := [name for name in own if not name.startswith((*KEPT, "fusion.")) and name not in state]:
        raise _refusal(path, f"it lacks {', '.join(lacking[:3])}")


def _refusal(path: Path, reason: str) -> ValueError:
    return ValueError(f"train.initial_weights = {str(path)!r}: {reason}")
