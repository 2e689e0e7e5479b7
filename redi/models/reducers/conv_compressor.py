"""The convolutional compressor of REGLUE, as a reducer."""

import torch
from torch import Tensor, nn

from redi.models.reducers import register
from redi.models.reducers.compressor import Compressor


@register
class ConvCompressor(Compressor):
    """A convolutional autoencoder of standardised features, as in REGLUE (arXiv 2512.16636).

    The encoder is a 3 x 3 convolution E -> hidden, a residual block with batch norms, and a 3 x 3 convolution to R
    channels; the decoder is its mirror. The loss is the mean squared error. REGLUE's own: rank 16 of four layers of
    DINOv2-B (E = 3072), with the code unscaled. The authors train with Adam and a cosine schedule for 25 epochs.

    Args:
        rank, weights, code_statistics: see `Compressor`.
        hidden: channels between the convolutions.
        statistics: the published statistics of the features. `weights` needs them.
        num_steps, batch_size, learning_rate, max_images, patience, scale, seed, path: see `TrainedReducer`.

    Examples:
        >>> reducer = ConvCompressor(rank=4, hidden=8, num_steps=5)
        >>> reducer.fit([torch.randn(8, 16, 4, 4)])
        >>> reducer(torch.randn(2, 16, 4, 4)).shape
        torch.Size([2, 4, 4, 4])
    """

    names = {"encoder.model.": "encode.", "decoder.model.": "decode."}
    optional = ("conv1.bias", "conv2.bias", "num_batches_tracked")  # batch norms follow these convolutions
    needs_statistics = True

    def _build(self, width: int) -> None:
        self.encode = _mirror(width, self.hidden, self.rank).to(self.mean.device)
        self.decode = _mirror(self.rank, self.hidden, width).to(self.mean.device)


def _mirror(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    first, last = nn.Conv2d(inputs, hidden, 3, padding=1), nn.Conv2d(hidden, outputs, 3, padding=1)
    return nn.Sequential(first, _Residual(hidden), last)


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(hidden)))
