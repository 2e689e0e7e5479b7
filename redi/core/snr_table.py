"""How much of each channel group is signal at each t: what training on groups of different spread means."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.processes import Process

TIMES = (0.1, 0.25, 0.5, 0.75, 0.9)


def spreads(channels: Channels, x: Tensor) -> dict[str, float]:
    """{group: the root mean square of its channels' standard deviations} of joint states (N, C, H, W)."""
    variances = x.double().var(dim=(0, 2, 3))  # (C,)
    return {name: float(variances[channels.slice(name)].mean().sqrt()) for name in channels}


def noise_table(channels: Channels, process: Process, weights: Mapping[str, float], spread: Mapping[str, float]) -> str:
    """A line per group: spread, lambda (`weights`), signal-to-noise ratio alpha^2 spread^2 / sigma^2 in dB at some t;
    and one for each group that is denoised earlier or later than the image, because its spread is another.
    """
    process = process.for_channels(channels)
    width = max(len(name) for name in channels)
    heads = "".join(f"{f't={t}':>8}" for t in TIMES)
    lines = [f"{'group':<{width}}  {'std':>6}  {'lambda':>6}  signal-to-noise ratio in dB", " " * (width + 16) + heads]
    for name in channels:
        weight = f"{weights[name]:>6.3g}" if name in weights else f"{1:>6}"
        ratios = "".join(f"{_decibels(process, channels, name, spread[name], t):>8.1f}" for t in TIMES)
        lines.append(f"{name:<{width}}  {spread[name]:>6.3g}  {weight}{ratios}")
    for name in channels.representations:
        times = spread[name] / spread["image"]
        if not 0.4 < times < 2.5:
            when = "earlier" if times > 1 else "later"
            farther = abs(math.log(spread[name])) > abs(math.log(spread["image"]))  # from 1
            scale = "its reducer's scale ('unit_rms' gives about 1)" if farther else "the autoencoder's scale"
            what = f"{name} has {times:.2g} times the image's spread, so it is denoised {when} than the image"
            lines.append(f"{what}: if that is not wanted, change {scale}")
    return "\n".join(lines)


def _decibels(process: Process, channels: Channels, name: str, spread: float, t: float) -> float:
    ratio = torch.as_tensor((process.alpha(t) * spread / process.sigma(t)) ** 2)
    if ratio.ndim:  # a process that gives every channel a time of its own
        ratio = ratio.flatten()[channels.slice(name)][0]
    return float(10 * ratio.log10())
