"""Forecasts of size and cost, printed before the first step."""

import torch
from torch import nn

from redi.evaluation.samples.sample import sample
from redi.models.codec import JointCodec
from redi.models.cost import forward_flops, matmul_rate
from redi.models.interface import state_of
from redi.models.transformer import DiffusionTransformer
from redi.runs.checks import setting
from redi.runs.load import Run
from redi.runtime.device import choose_precision
from redi.runtime.progress import duration
from redi.sampling.generate import generate
from redi.training.trainer import train


def training_forecast(net: nn.Module, codec: JointCodec, num_images: int, device: torch.device) -> str:
    """Return shapes, epochs, and compute with a lower bound of the time, as text. `net` may be on the meta device."""
    steps, batch_size = setting(train, "num_steps"), setting(train, "batch_size")
    epochs = steps * batch_size / num_images
    flops = 3 * forward_flops(net, align=bool(codec.alignments)) * batch_size  # forward once, backward twice
    rate = matmul_rate(device, choose_precision(setting(train, "precision"), device).dtype)
    grid = state_of(net).grid
    tokens = f", {net.fusion.num_tokens} tokens" if isinstance(net, DiffusionTransformer) else ""
    vectors = {name: f" (a vector of {length})" for name, length in codec.channels.vectors.items()}
    channels = ", ".join(f"{name} {number}{vectors.get(name, '')}" for name, number in codec.channels.items())
    return (
        f"joint state       channels {channels}, on {grid[0]} x {grid[1]}\n"
        f"model             {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters{tokens}\n"
        f"training          {steps:,} steps of batch {batch_size}, "
        f"{epochs:{',.0f' if epochs >= 1000 else '.3g'}} epochs\n"
        f"compute           {flops:.3g} FLOPs per step, {flops * steps:.3g} in total: "
        f"at least {duration(flops * steps / rate)} on this device"
    )


def sampling_forecast(run: Run) -> str:
    """Return the number of images, the checkpoint and the sampler as text."""
    sets, sampler = len(setting(sample, "seeds") or (None,)), setting(generate, "sampler")
    settings = sampler.provenance() if sampler else {"name": "the default sampler"}
    how = ", ".join([settings.pop("name"), *(f"{name} {value}" for name, value in settings.items())])
    return f"{sets * setting(sample, 'num_images'):,} images from step {run.step:,} of {run.folder}, with {how}"
