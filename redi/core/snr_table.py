"""The signal-to-noise ratio of each channel group along the process."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.processes import Process

TIMES = (0.1, 0.25, 0.5, 0.75, 0.9)  # the columns of the table


def spreads(channels: Channels, x: Tensor) -> dict[str, float]:
    """Return {group: root mean square of the standard deviations of its channels} for joint states (N, C, H, W)."""
    variances = x.double().var(dim=(0, 2, 3))  # (C,)
    return {name: float(variances[channels.slice(name)].mean().sqrt()) for name in channels}


def snr_table(channels: Channels, process: Process, weights: Mapping[str, float], spread: Mapping[str, float]) -> str:
    """Return a table of the standard deviation (`spread`), lambda (`weights`) and signal-to-noise ratio of each group.

    The ratio is alpha^2 spread^2 / sigma^2 in dB, at the times `TIMES`. The last lines name the groups whose standard
    deviation differs from the image's by a factor of more than 2.5: they are denoised earlier or later than the image.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> channels, spread = Channels(image=4, dinov2=8), {"image": 1.0, "dinov2": 1.0}
        >>> print(snr_table(channels, FlowMatching(), {"dinov2": 0.5}, spread))
        group      std  lambda  signal-to-noise ratio in dB
                                 t=0.1  t=0.25   t=0.5  t=0.75   t=0.9
        image        1       1   -19.1    -9.5     0.0     9.5    19.1
        dinov2       1     0.5   -19.1    -9.5     0.0     9.5    19.1
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
            farther = abs(math.log(spread[name])) > abs(math.log(spread["image"]))  # farther from 1 than the image
            scale = "the scale of its reducer ('unit_rms' gives about 1)" if farther else "the scale of the autoencoder"
            what = f"{name} has {times:.2g} times the standard deviation of the image and is denoised {when}"
            lines.append(f"{what}: to avoid this, change {scale}")
    return "\n".join(lines)


def _decibels(process: Process, channels: Channels, name: str, spread: float, t: float) -> float:
    ratio = torch.as_tensor((process.alpha(t) * spread / process.sigma(t)) ** 2)
    if ratio.ndim:  # the process has a time per channel
        ratio = ratio.flatten()[channels.slice(name)][0]
    return float(10 * ratio.log10())


noise_table = snr_table  # name in version 0.1
