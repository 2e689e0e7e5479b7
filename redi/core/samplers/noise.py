"""Normal noise as a function of (seed, image index, draw number), the same on every device."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from redi.runtime.randomness import mix_seeds

WORD = 2**32 - 1


class ImageNoise:
    """The source of randomness in sampling: draw k of image i is a function of (seed, i, k) alone.

    A counter-based generator (`philox`) computes the noise on the device, without a random state. `torch.compile` can
    trace it. Devices may differ in the last bit of log, cos and sin. Further channels leave the noise of the first ones
    as it was, so plain and joint models can be compared from the same noise of the image.

    Args:
        indices: the indices of the N images, any integers.
        shape: (C, H, W) of one image.

    Examples:
        The noise of an image does not depend on its batch.

        >>> batch = ImageNoise(0, range(4), (4, 8, 8))
        >>> single = ImageNoise(0, [2], (4, 8, 8))
        >>> torch.equal(batch()[2:3], single()), torch.equal(batch()[2:3], single())
        (True, True)
    """

    def __init__(
        self, seed: int, indices: Iterable[int], shape: tuple[int, int, int], device: torch.device | str = "cpu"
    ):
        self.keys = torch.tensor([mix_seeds(seed, int(i)) for i in indices], dtype=torch.int64).to(device)
        self.draws = torch.zeros((), dtype=torch.int64, device=device)  # number of draws; a tensor for CUDA graphs
        self.shape = shape

    def __call__(self) -> Tensor:
        """Return standard normal noise (N, C, H, W), float32, new at every call."""
        values = standard_normal(self.keys, self.draws, math.prod(self.shape))
        self.draws.add_(1)
        return values.reshape(len(self.keys), *self.shape)


def standard_normal(keys: Tensor, draw: Tensor, num_values: int) -> Tensor:
    """Return independent standard normal numbers (N, num_values), float32, for keys (N,) and draw (), both int64.

    Four values at a time come from `philox` at the counter (quad, draw, 0, 0). The transform of Box & Muller (1958)
    turns two random words into two normal numbers.
    """
    num_quads = -(-num_values // 4)
    quads = torch.arange(num_quads, device=keys.device)
    first = (quads << 32 | draw).repeat(len(keys), 1)  # (N, quads)
    parts = []
    for words in philox(first, torch.zeros_like(first), keys[:, None]):
        # The lower word gives a uniform number in [2^-33, 1]. Small numbers, the tail of the normal up to 6.76, keep
        # full float32 precision. clamp: on some devices the logarithm just below 1 is positive.
        uniform = words.bitwise_and(WORD).float().mul_(2**-32).add_(2**-33)
        radius = uniform.log_().mul_(-2).clamp_(min=0).sqrt_()
        angle = (words >> 32).float().mul_(2 * math.pi / 2**32)  # the signed upper word: [-pi, pi]
        parts += [angle.cos().mul_(radius), angle.sin_().mul_(radius)]
    return torch.stack(parts, dim=2).flatten(1)[:, :num_values].contiguous()


def philox(first: Tensor, second: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Map counters to random bits, in place, with Philox4x32-10: a bijection of 128-bit counters for each 64-bit key.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A counter of four 32-bit words is
    `first` = c0 << 32 | c1 and `second` = c2 << 32 | c3, int64. Keys broadcast.
    """
    key0, key1 = keys << 32, keys >> 32 << 32  # upper halves, like the words they are mixed with
    for _ in range(10):
        upper0, upper2 = ((pair >> 32).bitwise_and_(WORD) for pair in (first, second))
        first.bitwise_left_shift_(32).bitwise_xor_(upper2.mul_(0xCD9E8D57)).bitwise_xor_(key0)
        second.bitwise_left_shift_(32).bitwise_xor_(upper0.mul_(0xD2511F53)).bitwise_xor_(key1)
        # The golden ratio and sqrt(3) - 1, which need a sign to fit in int64.
        key0, key1 = key0 + (0x9E3779B9 - 2**32 << 32), key1 + (0xBB67AE85 - 2**32 << 32)
    return first, second
