"""Normal noise that depends on a seed, an image's index and the number of the draw alone, on any device."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from redi.runtime.randomness import mix_seeds

WORD = 2**32 - 1


class ImageNoise:
    """The one source of randomness in sampling: draw k of image i is a function of (seed, i, k) alone.

    It is computed where it is used (`philox`), without a random state, a copy from the host or a wait for it;
    `torch.compile` takes it whole. Devices may differ in the last bit of log, cos and sin.

    Args:
        indices: of the N images, any integers.
        shape: (C, H, W) of one image.
    """

    def __init__(
        self, seed: int, indices: Iterable[int], shape: tuple[int, int, int], device: torch.device | str = "cpu"
    ):
        self.keys = torch.tensor([mix_seeds(seed, int(i)) for i in indices], dtype=torch.int64).to(device)
        self.draws = torch.zeros((), dtype=torch.int64, device=device)  # so far; on the device, for CUDA graphs
        self.shape = shape

    def __call__(self) -> Tensor:
        """-> (N, C, H, W) float32 standard normal, different at every call."""
        values = standard_normal(self.keys, self.draws, math.prod(self.shape))
        self.draws.add_(1)
        return values.reshape(len(self.keys), *self.shape)


def standard_normal(keys: Tensor, draw: Tensor, num_values: int) -> Tensor:
    """Keys (N,) int64, number of the draw () int64 -> (N, num_values) float32, independent standard normal numbers.

    The words of quad q of a draw are `philox` of the counter (q, draw, 0, 0); the transform of Box & Muller (1958)
    makes two numbers of every two words.
    """
    num_quads = -(-num_values // 4)
    quads = torch.arange(num_quads, device=keys.device)
    first = (quads << 32 | draw).repeat(len(keys), 1)  # (N, quads)
    parts = []
    for words in philox(first, torch.zeros_like(first), keys[:, None]):
        # The radius from the lower word as a number in [2^-33, 1], of which float32 keeps every digit in the tail, up
        # to 6.76. Some devices' logarithm is above 0 just below 1.
        uniform = words.bitwise_and(WORD).float().mul_(2**-32).add_(2**-33)
        radius = uniform.log_().mul_(-2).clamp_(min=0).sqrt_()
        angle = (words >> 32).float().mul_(2 * math.pi / 2**32)  # from the upper word with its sign: [-pi, pi]
        parts += [angle.cos().mul_(radius), angle.sin_().mul_(radius)]
    return torch.stack(parts, dim=1).flatten(1)[:, :num_values].contiguous()


def philox(first: Tensor, second: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random bits without a
    state, a bijection of 128-bit counters for each 64-bit key. Words come in pairs, c0 << 32 | c1, c2 << 32 | c3; the
    result overwrites them. int64 throughout; keys broadcast.
    """
    key0, key1 = keys << 32, keys >> 32 << 32  # as upper words, for it is these that they are mixed with
    for _ in range(10):
        upper0, upper2 = ((pair >> 32).bitwise_and_(WORD) for pair in (first, second))
        first.bitwise_left_shift_(32).bitwise_xor_(upper2.mul_(0xCD9E8D57)).bitwise_xor_(key0)
        second.bitwise_left_shift_(32).bitwise_xor_(upper0.mul_(0xD2511F53)).bitwise_xor_(key1)
        # The golden ratio and sqrt(3) - 1, which need a sign to fit in int64.
        key0, key1 = key0 + (0x9E3779B9 - 2**32 << 32), key1 + (0xBB67AE85 - 2**32 << 32)
    return first, second
