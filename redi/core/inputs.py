"""Checks of images and feature maps, applied to the methods of all components."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import ClassVar

import torch
from torch import Tensor

TO_BYTES = (
    "from [0, 1] take (255 * images).round().clamp(0, 255).to(torch.uint8); from [-1, 1] start with 127.5 * images + "
    "127.5; from [0, 255] start with images"
)
LAYOUTS = {  # {(number of dimensions, channel dimension, number of channels): code that returns (N, 3, H, W)}
    (3, 0, 3): "images[None]",
    (3, 2, 3): "images.permute(2, 0, 1)[None]",
    (4, 3, 3): "images.permute(0, 3, 1, 2)",
    (4, 1, 1): "images.expand(-1, 3, -1, -1)",
    (4, 1, 4): "images[:, :3]",
}


class WrongType(TypeError, ValueError):
    """A TypeError that is also a ValueError, so that programs report it without a traceback.

    Examples:
        >>> try:
        ...     check_images(torch.zeros(1, 3, 8, 8))
        ... except ValueError as error:
        ...     print(str(error)[:52])
        images must be uint8 (N, 3, H, W), got torch.float32
    """


class Checked:
    """A base class that checks the first argument of the methods in `takes`, also if a subclass overrides them.

    Examples:
        >>> class Encoder(Checked):
        ...     takes = {"__call__": check_images}
        ...     def __call__(self, images): return images
        >>> class Half(Encoder):
        ...     def __call__(self, images): return images / 2
        >>> try:
        ...     Half()(torch.zeros(8, 8, 3).byte())
        ... except ValueError as error:
        ...     print(error)
        images must be uint8 (N, 3, H, W), got (8, 8, 3): take images.permute(2, 0, 1)[None]
    """

    takes: ClassVar[Mapping[str, Callable]]  # {method: check, which returns the argument for the method}

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

    call.checked = True  # type: ignore[attr-defined]  # marks the method as checked
    return call


def check_images(images: Tensor) -> Tensor:
    """Return the images. Raises ValueError unless they are uint8 (N, 3, H, W); `WrongType` for another dtype."""
    needed = "images must be uint8 (N, 3, H, W), got"
    if not isinstance(images, Tensor):
        raise WrongType(f"{needed} {type(images).__name__}: make a tensor with torch.as_tensor")
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        raise WrongType(f"{needed} {images.dtype} {shape}: {TO_BYTES}")
    if len(shape) != 4 or shape[1] != 3:
        codes = [code for (ndim, axis, size), code in LAYOUTS.items() if ndim == len(shape) and shape[axis] == size]
        raise ValueError(f"{needed} {shape}" + "".join(f": take {code}" for code in codes[:1]))
    return images


def check_maps(maps: Tensor, what: str = "features and latents") -> Tensor:
    """Return features or latents. Raises ValueError unless they are floating-point (N, C, H, W)."""
    kind = getattr(maps, "dtype", type(maps).__name__)
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise WrongType(f"{what} must be floating-point (N, C, H, W), got {kind}: encode images first")
    if maps.ndim != 4:
        raise ValueError(f"{what} must be floating-point (N, C, H, W), got {tuple(maps.shape)}")
    return maps
