"""Conditional sampling: some channel groups are known, and the others are sampled given them."""

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
    """Wrap the arguments of a sampler so that the known groups follow the path to their values.

    The network receives alpha(t) known + sigma(t) noise for the known groups, with the initial noise at every t,
    whatever the sampler's state. This is inpainting by replacement (Song et al., arXiv 2011.13456, appendix I.2): it
    conditions on the noised groups, not on the clean ones. EulerMaruyama with a large `diffusion_norm` and many
    evaluations approaches the true conditional. With ODE samplers, samples depend only weakly on the known groups.

    Args:
        given: {group: (N, C_m, H, W)}, clean values: scaled latents or reduced features.
        own_time: pass the known groups clean, at t = 1, to a network trained with
            `JointObjective.clock = clocks.Independent`. Every sampler then draws from the true conditional.

    Returns `denoise` and `draw` for the sampler, and a function (x, t = 1) -> x that sets the known groups of a state
    to the network's input at t. At t = 1 this is their clean value.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> from redi.core.samplers import Euler
        >>> channels, process = Channels(image=1, dinov2=2), FlowMatching()
        >>> known = {"dinov2": torch.full((1, 2, 4, 4), 7.0)}
        >>> def denoise(x, t): return torch.zeros_like(x)
        >>> denoise, draw, insert = clamped(denoise, process, lambda: torch.randn(1, 3, 4, 4), channels, known)
        >>> x = insert(Euler(num_evaluations=2)(denoise, process, draw))
        >>> torch.equal(x[:, 1:], known["dinov2"])
        True
    """
    if not given:
        return denoise, draw, lambda x, t=1.0: x
    initial: list[Tensor] = []  # the initial noise, and the known groups as a joint state

    def draw_and_record() -> Tensor:
        noise = draw()
        if not initial:
            groups = channels.split(torch.zeros_like(noise)) | {k: v.to(noise.dtype) for k, v in given.items()}
            initial.extend([noise, channels.join(groups)])
        return noise

    def insert(x: Tensor, t: float = 1.0) -> Tensor:
        noise, known = initial
        groups = channels.split(known if own_time or t == 1 else process.mix(known, noise, t))
        return channels.join(channels.split(x) | {name: groups[name].to(x.dtype) for name in given})

    return lambda x, t: denoise(insert(x, t), t), draw_and_record, insert


def times_with_given(process: Process, channels: Channels, given: Iterable[str]) -> Callable[[Tensor], Tensor]:
    """Return the function t (N,) -> time input of the model (N, groups), with t = 1 for the given groups."""
    given = set(given)

    def model_time(t: Tensor) -> Tensor:
        times, clean = process.model_time(t), process.model_time(torch.ones_like(t))
        times, clean = (u if u.ndim == 2 else u[:, None].expand(-1, len(channels)) for u in (times, clean))
        # One group at a time, because a mask would have to be copied to the device.
        return torch.stack([(clean if name in given else times)[:, i] for i, name in enumerate(channels)], dim=1)

    return model_time


def check_given(given: Mapping[str, Tensor], channels: Channels, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Return the known groups as channels of the joint state, (N, C_m, H, W), for `shape` = (N, H, W).

    A vector may be (N, length) or (N, length, 1, 1). Raises ValueError unless the groups are latents or features of
    this shape, and one is left.
    """
    checked = dict(given)
    for name, group in given.items():
        if name not in channels:
            raise ValueError(f"given names {name!r}: must be among {', '.join(channels)}")
        shapes: list[tuple[int, ...]] = [(shape[0], channels[name], *shape[1:])]
        if length := channels.vectors.get(name):
            shapes = [(shape[0], length), (shape[0], length, 1, 1), *shapes]
        if tuple(group.shape) not in shapes:
            allowed = " or ".join(map(str, shapes))
            raise ValueError(f"given[{name!r}] has shape {tuple(group.shape)}: must be {allowed}")
        if length:
            checked[name] = channels.stored(name, channels.vector(name, group), shape[1:])
        check_maps(checked[name], f"the values of given[{name!r}]")
    if set(given) == set(channels):
        raise ValueError("given names every channel group: leave out at least one, which is then sampled")
    return checked
