"""A learned reducer: a small convolutional autoencoder of the features."""

import torch
from torch import Tensor, nn

from redi.models.reducers import register
from redi.models.reducers.pca import PCA
from redi.models.reducers.trained import TrainedReducer


@register
class ConvBottleneck(TrainedReducer):
    """PCA plus a learned convolutional correction: an autoencoder of the features with R code channels.

    The encoder computes linear(f) + correction(f) from standardised features f; the decoder has the same form. The
    linear maps start as PCA, the corrections at zero. The loss is the mean squared error.

    Args:
        rank: R, the number of code channels.
        hidden: hidden channels of the corrections.
        num_steps, batch_size, learning_rate, max_images, patience, scale, seed, path: see `TrainedReducer`.

    Examples:
        >>> features = torch.randn(8, 16, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> reducer = ConvBottleneck(rank=4, hidden=8, num_steps=5)
        >>> reducer.fit([features])
        >>> reducer(features).shape, reducer.inverse(reducer(features)).shape
        (torch.Size([8, 4, 4, 4]), torch.Size([8, 16, 4, 4]))
    """

    encode: "_Corrected"
    decode: "_Corrected"

    def _build(self, width: int) -> None:
        self.encode = _Corrected(width, self.rank, self.hidden).to(self.mean.device)
        self.decode = _Corrected(self.rank, width, self.hidden).to(self.mean.device)

    @torch.no_grad()
    def _start(self, pca: PCA) -> None:
        rows = pca.components[: self.rank]  # (R, E), orthonormal
        self.encode.linear.weight.copy_(rows[:, :, None, None])
        self.decode.linear.weight.copy_(rows.T[:, :, None, None])


class _Corrected(nn.Module):
    """Map (N, I, h, w) to (N, O, h, w) by a linear map per position plus a convolutional correction."""

    def __init__(self, inputs: int, outputs: int, hidden: int):
        super().__init__()
        self.linear = nn.Conv2d(inputs, outputs, 1)
        self.correction = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1), nn.GELU(), nn.Conv2d(hidden, hidden, 3, padding=1), nn.GELU(),
            nn.Conv2d(hidden, outputs, 1),
        )  # fmt: skip
        for parameter in (self.linear.get_parameter("bias"), *self.correction[-1].parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.correction(x)
