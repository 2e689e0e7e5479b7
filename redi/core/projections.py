"""The input and the prediction of a network when the projection of a group trains with it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from redi.core.channels import Channels
from redi.core.parts import PROJECTION


def project(
    parts: Mapping[str, Any], channels: Channels, x: Tensor, stored: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return x with the projections of stored channels in place of their groups, the terms, and values for the log.

    Args:
        parts: {group: the half of its reducer that trains}, see `Reducer.trained_part`.
        x: (N, C, H, W), without a gradient.
        stored: {group: (N, S, h, w)}.
    """
    groups, terms = channels.split(x), []
    values: dict[str, Tensor] = {}
    for name, rows in stored.items():
        z = parts[name](rows)
        groups[name] = channels.on_grid(name, z, (x.shape[2], x.shape[3]))
        term, named = parts[name].terms(rows, z)
        terms.append(term)
        values |= {f"{PROJECTION}{name}/{key}": value for key, value in named.items()}
    return channels.join(groups), torch.stack(terms).sum(), values


def predict(
    model: Callable[..., Any], inputs: Sequence[Tensor], asks: Mapping[str, Any], num_channels: int,
    channels: Channels, alone: Collection[str] = (),
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the prediction of a model, (N, num_channels, H, W), and the further outputs that `asks` requests.

    With groups in `alone`, only their prediction has a gradient to x_t. The values are those of one pass, but all else
    comes from a second one, whose x_t has no gradient. `inputs`: x_t (N, C, H, W), the model's time, and labels.

    Raises ValueError for a prediction of another shape.
    """
    x_t, *others = inputs

    def outputs(x_t: Tensor) -> tuple[Tensor, ...]:
        result = model(x_t, *others, **asks)
        return tuple(result) if asks else (result,)

    prediction, *further = outputs(x_t.detach() if alone else x_t)
    expected = (len(x_t), num_channels, *x_t.shape[2:])
    if prediction.shape != expected:
        what = f"the model returns {tuple(prediction.shape)} for x of shape {tuple(x_t.shape)}"
        raise ValueError(f"train.model: {what}: the prediction must have shape {expected}")
    if alone:
        mask = channels.per_channel({name: float(name in alone) for name in channels}, like=x_t)  # (1, C, 1, 1)
        mask = functional.pad(mask, (0, 0, 0, 0, 0, num_channels - mask.shape[1])).bool()
        prediction = torch.where(mask, outputs(x_t)[0], prediction)
    return prediction, *further
