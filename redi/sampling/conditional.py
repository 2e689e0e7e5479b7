"""Conditional queries of the joint model: some groups are known, the others are drawn given them."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.inputs import check_maps
from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw


def clamped(
    denoise: Denoise, process: Process, draw: Draw, channels: Channels, given: Mapping[str, Tensor], *,
    own_time: bool = False,
) -> tuple[Denoise, Draw, Callable[..., Tensor]]:  # fmt: skip
    """Wraps the arguments of a sampler so that the given groups follow their own path.

    The network sees the known groups at t as alpha(t) known + sigma(t) noise, with the sampler's initial noise for the
    whole path; the sampler's own state of them is ignored. This conditions on the noised groups, not the clean ones
    (inpainting by replacement; Song et al., arXiv 2011.13456, appendix I.2). EulerMaruyama with a large
    `diffusion_norm` and many evaluations turns that into the true conditional; an ODE sampler follows weakly.

    Args:
        given: {group: (N, C_m, H, W)} clean values, of scaled latents or reduced features.
        own_time: show them clean, to a network with a t for each group (`DiffusionTransformer.group_timesteps`, trained
            with `JointObjective.independent_timesteps`): the conditional itself, for every sampler.

    -> `denoise` and `draw` to call the sampler with, and a function (x, t = 1) -> x that puts the groups into a state
    of the sampler as the network sees them at t: clean into its result.
    """
    if not given:
        return denoise, draw, lambda x, t=1.0: x
    first: list[Tensor] = []  # the noise of the path, and the given groups as a joint state

    def recorded() -> Tensor:
        noise = draw()
        if not first:
            known = dict(channels.split(torch.zeros_like(noise))) | {k: v.to(noise.dtype) for k, v in given.items()}
            first.extend([noise, channels.join(known)])
        return noise

    def put(x: Tensor, t: float = 1.0) -> Tensor:
        noise, known = first
        on_path = channels.split(known if own_time or t == 1 else process.mix(known, noise, t))
        return channels.join(dict(channels.split(x)) | {name: on_path[name].to(x.dtype) for name in given})

    return lambda x, t: denoise(put(x, t), t), recorded, put


def times_with_given(process: Process, channels: Channels, given: Iterable[str]) -> Callable[[Tensor], Tensor]:
    """The model's time input at t (N,): (N, groups), with t = 1 for the given groups."""
    given = set(given)

    def model_time(t: Tensor) -> Tensor:
        times, clean = process.model_time(t), process.model_time(torch.ones_like(t))
        times, clean = (u if u.ndim == 2 else u[:, None].expand(-1, len(channels)) for u in (times, clean))
        # Group by group, for a mask of them would have to be copied to the device.
        return torch.stack([(clean if name in given else times)[:, i] for i, name in enumerate(channels)], dim=1)

    return model_time


def check_given(given: Mapping[str, Tensor], channels: Channels, shape: tuple[int, int, int]) -> None:
    """Raises ValueError unless every group is one of the joint state's, with values for (N, H, W), and one is left;
    TypeError for images in place of such values.
    """
    for name, group in given.items():
        if name not in channels:
            raise ValueError(f"given names {name!r}: the joint state has {', '.join(channels)}")
        expected = (shape[0], channels[name], *shape[1:])
        if tuple(group.shape) != expected:
            raise ValueError(f"given[{name!r}] has shape {tuple(group.shape)}, but {expected} is needed")
        check_maps(group, f"the values of given[{name!r}]")
    if set(given) == set(channels):
        raise ValueError("given names every group of the joint state: nothing is left to draw")
