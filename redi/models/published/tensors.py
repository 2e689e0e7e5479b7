"""Rename the tensors of a published state dict, and split those that hold all channel groups. Both ways are exact."""

from collections.abc import Mapping

import torch
from torch import Tensor

from redi.core.channels import Channels

PARTS = ("weight", "bias")


def to_ours(
    published: Mapping[str, Tensor], names: Mapping[str, str], channels: Channels, *, learned_variance: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return {this library's name: tensor} and {published name: unused outputs of heads}.

    A patch embedding is split by channels into one per group; its bias goes to the image group (see `fusion.Merged`).
    A head is split by its rows (i p + j) O + c.

    Args:
        names: see `Layout.names`.
        channels: the groups along C; vectors have tensors of their own.
        learned_variance: whether the rows c >= C are variances (DiT) or unused (SiT and related models).
    """
    ours, unused = {}, {}
    for name, tensor in published.items():
        stem, _, part = name.rpartition(".")
        if name in names:
            ours[names[name]] = tensor
        elif stem not in names:
            continue
        elif names[stem].endswith(".embeddings"):
            groups = tensor.split([channels[n] for n in channels.maps], dim=1) if part == "weight" else [tensor]
            ours |= {f"{names[stem]}.{n}.{part}": t.clone() for n, t in zip(channels.maps, groups, strict=False)}
        elif names[stem].endswith(".heads"):
            sizes = _heads(names[stem], channels, variances=learned_variance)
            total = sum(channels[n] for n in channels.maps)
            rows = tensor.unflatten(0, (_patch_area(published, names), -1))  # (p p, O, D) or (p p, O)
            if rows.shape[1] > sum(sizes.values()):
                unused[name] = rows[:, total:].flatten(0, 1)
            parts = rows[:, : sum(sizes.values())].split(list(sizes.values()), dim=1)
            ours |= {f"{head}.{part}": t.flatten(0, 1) for head, t in zip(sizes, parts, strict=True)}
        else:
            ours[f"{names[stem]}.{part}"] = tensor
    return ours, unused


def to_theirs(
    ours: Mapping[str, Tensor], names: Mapping[str, str], channels: Channels, unused: Mapping[str, Tensor] = {}
) -> dict[str, Tensor]:
    """Return {published name: tensor} in the order of `names`: the inverse of `to_ours`."""
    published = {}
    for stem, our_stem in names.items():
        if our_stem in ours:
            published[stem] = ours[our_stem]
        for part in PARTS:
            name = f"{stem}.{part}"
            if our_stem.endswith(".embeddings"):
                weights = [ours[f"{our_stem}.{n}.weight"] for n in channels.maps]
                published[name] = torch.cat(weights, dim=1) if part == "weight" else ours[f"{our_stem}.image.bias"]
            elif our_stem.endswith(".heads"):
                heads = [(ours.get(f"{head}.{part}"), size) for head, size in _heads(our_stem, channels).items()]
                rows = [head.unflatten(0, (-1, size)) for head, size in heads if head is not None]
                if name in unused:
                    rows.append(unused[name].unflatten(0, (len(rows[0]), -1)))
                published[name] = torch.cat(rows, dim=1).flatten(0, 1)  # each (p p, channels, ...)
            elif f"{our_stem}.{part}" in ours:
                published[name] = ours[f"{our_stem}.{part}"]
    return published


def _heads(stem: str, channels: Channels, *, variances: bool = True) -> dict[str, int]:
    """Return {stem of a head: channels of its group}, those of variances last."""
    stems = [stem, f"{stem.removesuffix('heads')}variance_heads"][: 1 + variances]
    return {f"{one}.{name}": channels[name] for one in stems for name in channels.maps}


def _patch_area(published: Mapping[str, Tensor], names: Mapping[str, str]) -> int:
    stem = next(stem for stem, ours in names.items() if ours.endswith(".embeddings"))
    return published[f"{stem}.weight"][0, 0].numel()
