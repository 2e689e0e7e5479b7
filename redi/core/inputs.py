"""What components take: images and feature maps, checked once, by the interface, for every component of a kind."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import ClassVar

import torch
from torch import Tensor

TO_BYTES = (
    "from [0, 1] take (255 * images).round().clamp(0, 255).to(torch.uint8); from [-1, 1] begin with 127.5 * images + "
    "127.5; from [0, 255], with images"
)
LAYOUTS = {  # (dimensions, the one of the channels, their number): what makes (N, 3, H, W) of it
    (3, 0, 3): "images[None]",
    (3, 2, 3): "images.permute(2, 0, 1)[None]",
    (4, 3, 3): "images.permute(0, 3, 1, 2)",
    (4, 1, 1): "images.expand(-1, 3, -1, -1)",
    (4, 1, 4): "images[:, :3]",
}


class WrongType(TypeError, ValueError):
    """A TypeError of Python's callers that programs explain, as every ValueError, without a traceback."""


class Checked:
    """An interface that checks the first argument of some methods, also where a component overrides them."""

    takes: ClassVar[Mapping[str, Callable]]  # {method: a check, which returns what the method gets}

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        for name, check in cls.takes.items():
            if not hasattr(method := getattr(cls, name), "checked"):
                setattr(cls, name, _checked(method, check))


def _checked(method: Callable, check: Callable) -> Callable:
    first = [*inspect.signature(method).parameters][1]  # after self

    @wraps(method)
    def call(self, *values, **named):
        named |= {first: check(named[first])} if first in named else {}
        return method(self, *map(check, values[:1]), *values[1:], **named)

    call.checked = True
    return call


def check_images(images: Tensor) -> Tensor:
    """The images, if they are uint8 (N, 3, H, W). Raises TypeError for another type, ValueError for another shape."""
    needed = "images are uint8 (N, 3, H, W), but got"
    if not isinstance(images, Tensor):
        raise WrongType(f"{needed} {type(images).__name__}: make a tensor with torch.as_tensor")
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        raise WrongType(f"{needed} {images.dtype} {shape}: {TO_BYTES}")
    if len(shape) != 4 or shape[1] != 3:
        known = [code for (ndim, axis, size), code in LAYOUTS.items() if ndim == len(shape) and shape[axis] == size]
        raise ValueError(f"{needed} {shape}" + "".join(f": take {code}" for code in known[:1]))
    return images


def check_maps(maps: Tensor, what: str = "features and latents") -> Tensor:
    """Features or latents, if they are floating-point (N, C, H, W). Raises as `check_images`."""
    kind = getattr(maps, "dtype", type(maps).__name__)
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise WrongType(f"{what} are floating-point (N, C, H, W), but got {kind}: images must be encoded first")
    if maps.ndim != 4:
        raise ValueError(f"{what} are floating-point (N, C, H, W), but got {tuple(maps.shape)}")
    return maps
