"""What components take: images and feature maps, checked once, by the interface, for every component of a kind."""

import inspect
from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

TO_BYTES = (
    "from [0, 1] take (255 * images).round().clamp(0, 255).to(torch.uint8); from [-1, 1] begin with 127.5 * images + "
    "127.5; from [0, 255], with images"
)


def guard(cls: type, check: Callable, *names: str) -> None:
    """Make these methods of a class, its own or inherited ones, run their first argument through `check`."""
    for name in names:
        if not hasattr(method := getattr(cls, name), "guarded"):
            setattr(cls, name, _guarded(method, check))


def _guarded(method: Callable, check: Callable) -> Callable:
    first = [*inspect.signature(method).parameters][1]  # after self

    @wraps(method)
    def call(self, *values, **named):
        if first in named:
            named[first] = check(named[first])
        else:
            values = tuple(check(value) for value in values[:1]) + values[1:]
        return method(self, *values, **named)

    call.guarded = True
    return call


def check_images(images: Tensor) -> Tensor:
    """The images, if they are uint8 (N, 3, H, W). Raises TypeError for another type, ValueError for another shape."""
    needed = "images are uint8 (N, 3, H, W)"
    if not isinstance(images, Tensor):
        raise TypeError(f"{needed}, but got {type(images).__name__}: make a tensor of them with torch.as_tensor")
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        raise TypeError(f"{needed}, but got {images.dtype} {shape}: {TO_BYTES}")
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"{needed}, but got {shape}{_remedy(shape)}")
    return images


def _remedy(shape: tuple[int, ...]) -> str:
    """What makes (N, 3, H, W) of a shape that is known from elsewhere."""
    match shape:
        case (3, _, _):
            return ": add a batch dimension with images[None]"
        case (_, _, 3):
            return ": channels come first; take images.permute(2, 0, 1)[None]"
        case (_, _, _, 3):
            return ": channels come first; take images.permute(0, 3, 1, 2)"
        case (_, 1, _, _):
            return ": make grey images colour with images.expand(-1, 3, -1, -1)"
        case (_, 4, _, _):
            return ": drop the transparency with images[:, :3]"
    return ""


def check_maps(maps: Tensor, what: str = "features and latents") -> Tensor:
    """Features or latents, if they are floating-point (N, C, H, W). Raises as `check_images`."""
    kind = maps.dtype if isinstance(maps, Tensor) else type(maps).__name__
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise TypeError(f"{what} are floating-point (N, C, H, W), but got {kind}: images must be encoded first")
    if maps.ndim != 4:
        raise ValueError(f"{what} are floating-point (N, C, H, W), but got {tuple(maps.shape)}")
    return maps
