"""The signal-to-noise ratio of each channel group along the process."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.processes import Process
from redi.core.processes.clocked import Clocked

TIMES = (0.1, 0.25, 0.5, 0.75, 0.9)  # the columns of the table
CURVE = [k / 50 for k in range(1, 50)]  # the times of the curves, besides the kinks of the clock


def spreads(channels: Channels, x: Tensor) -> dict[str, float]:
    """Return {group: root mean square of the standard deviations of its channels} for joint states (N, C, H, W).

    Of a vector, it is that of the standard deviations of its numbers.
    """
    values, variances = channels.unpadded(x), x.double().var(dim=(0, 2, 3))  # (C,)
    by_group = {name: variances[channels.slice(name)] for name in channels.maps}
    by_group |= {name: values[name].double().var(dim=(0, 2, 3)) for name in channels.vectors}
    return {name: float(by_group[name].mean().sqrt()) for name in channels}


def snr_table(channels: Channels, process: Process, weights: Mapping[str, float], spread: Mapping[str, float]) -> str:
    """Return a table of the standard deviation (`spread`), lambda (`weights`) and signal-to-noise ratio of each group.

    The ratio is alpha^2 spread^2 / sigma^2 in dB, at the times `TIMES`. With a clock these are shared times s, and a
    second line has the own time t of the group; "noise" is a group that has not started, and "clean" one that is done.
    The last lines name the groups whose standard deviation differs from the image's by a factor of more than 2.5: they
    are denoised earlier or later than the image.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> channels, spread = Channels(image=4, dinov2=8), {"image": 1.0, "dinov2": 1.0}
        >>> print(snr_table(channels, FlowMatching(), {"dinov2": 0.5}, spread))
        group      std  lambda  signal-to-noise ratio in dB
                                 t=0.1  t=0.25   t=0.5  t=0.75   t=0.9
        image        1       1   -19.1    -9.5     0.0     9.5    19.1
        dinov2       1     0.5   -19.1    -9.5     0.0     9.5    19.1
        >>> from redi.core.clocks import Lead
        >>> print(snr_table(channels, Clocked(FlowMatching(), Lead(0.3)), {"dinov2": 0.5}, spread))
        group      std  lambda  signal-to-noise ratio in dB at the shared time s, and the own time t
                                 s=0.1  s=0.25   s=0.5  s=0.75   s=0.9
        image        1       1   noise   -31.8    -5.4     6.3    16.5
                                   t=0 t=0.025  t=0.35 t=0.675  t=0.87
        dinov2       1     0.5   -16.5    -6.3     5.4    31.8   clean
                                t=0.13 t=0.325  t=0.65 t=0.975     t=1
    """
    process = process.for_channels(channels)
    width, symbol = max(len(name) for name in channels), "s" if isinstance(process, Clocked) else "t"
    heads = "".join(f"{f'{symbol}={t}':>8}" for t in TIMES)
    title = "signal-to-noise ratio in dB" + (" at the shared time s, and the own time t" if symbol == "s" else "")
    lines = [f"{'group':<{width}}  {'std':>6}  {'lambda':>6}  {title}", " " * (width + 16) + heads]
    for name in channels:
        weight = f"{weights[name]:>6.3g}" if name in weights else f"{1:>6}"
        ratios = [_decibels(process, channels, name, spread[name], t) for t in TIMES]
        shown = [f"{ratio:.1f}" if math.isfinite(ratio) else "noise" if ratio < 0 else "clean" for ratio in ratios]
        lines.append(f"{name:<{width}}  {spread[name]:>6.3g}  {weight}" + "".join(f"{text:>8}" for text in shown))
        if symbol == "s":
            own = [process.group_times(channels, s)[name] for s in TIMES]
            lines.append(" " * (width + 16) + "".join(f"{f't={round(t, 3):g}':>8}" for t in own))
    for name in channels.representations:
        times = spread[name] / spread["image"]
        if not 0.4 < times < 2.5:
            when = "earlier" if times > 1 else "later"
            farther = abs(math.log(spread[name])) > abs(math.log(spread["image"]))  # farther from 1 than the image
            scale = "the scale of its reducer ('unit_rms' gives about 1)" if farther else "the scale of the autoencoder"
            what = f"{name} has {times:.2g} times the standard deviation of the image and is denoised {when}"
            lines.append(f"{what}: to avoid this, change {scale}")
    return "\n".join(lines)


def snr_curves(channels: Channels, process: Process, spread: Mapping[str, float]) -> dict:
    """Return {"s": times, "snr": {group: dB}} as JSON values, None where a group is pure noise or clean.

    With a clock, {"t": {group: own times}} is added.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> curves = snr_curves(Channels(image=4), FlowMatching(), {"image": 1.0})
        >>> curves["s"][24], curves["snr"]["image"][24]
        (0.5, 0.0)
    """
    process = process.for_channels(channels)
    times = sorted({*CURVE, *process.kinks()})
    ratios = {name: [_decibels(process, channels, name, spread[name], t) for t in times] for name in channels}
    snr = {name: [round(dB, 2) if math.isfinite(dB) else None for dB in group] for name, group in ratios.items()}
    own = [process.group_times(channels, s) for s in times] if isinstance(process, Clocked) else []
    by_group = {"t": {name: [round(t[name], 4) for t in own] for name in channels}} if own else {}
    return {"s": [round(t, 4) for t in times], "snr": snr, **by_group}


def _decibels(process: Process, channels: Channels, name: str, spread: float, t: float) -> float:
    ratio = torch.as_tensor((process.alpha(t) * spread / process.sigma(t)) ** 2)
    if ratio.ndim:  # the process has a time per channel
        ratio = ratio.flatten()[channels.slice(name)][0]
    return float(10 * ratio.log10())


noise_table = snr_table  # name in version 0.1
