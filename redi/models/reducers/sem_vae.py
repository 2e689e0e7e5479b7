"""SemVAE: a variational autoencoder of the encoder's tokens, with transformers."""

from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from redi.models.pretrained_network import with_keywords_of
from redi.models.reducers import register
from redi.models.reducers.compressor import Compressor
from redi.runtime.ranges import check_choice


@register
class SemVAE(Compressor):
    """A transformer over the tokens of an image that encodes each into R channels, as in SFD (arXiv 2512.04926).

    Encoder and decoder are pre-norm transformers without positions, so any grid works. The loss is the mean squared
    error, plus 1 - cosine, plus the KL divergence to a standard normal, summed over an image. Fits are on standardised
    features. The published weights (width 768, rank 16) take the features of DINOv2-B as they are.

    The code is the mean of the posterior. The authors sample it at every encoding. Here a cache stores what `project`
    returns, and `finish` has no random generator, so a sample would differ between a cache and the images.

    Args:
        rank, weights, statistics, code_statistics: see `Compressor`.
        hidden, depth, num_heads: width, blocks and attention heads of encoder and decoder.
        cosine_weight, kl_weight: factors of these terms.
        cosine_over: the cosine is over the 'features' of every token. The authors' code takes it over the 'tokens', for
            every feature.
        num_steps, batch_size, learning_rate, max_images, patience, scale, seed, path: see `TrainedReducer`.

    Examples:
        >>> reducer = SemVAE(rank=4, hidden=8, depth=1, num_heads=2, num_steps=5)
        >>> reducer.fit([torch.randn(8, 16, 4, 4)])
        >>> reducer(torch.randn(2, 16, 4, 4)).shape
        torch.Size([2, 4, 4, 4])
    """

    names = {
        "encoder.": "encode.", "decoder.": "decode.", ".attn.": ".self_attn.", ".mlp.0.": ".linear1.",
        ".mlp.2.": ".linear2.",
    }  # fmt: skip
    settings = (*Compressor.settings, "depth", "num_heads", "cosine_weight", "cosine_over", "kl_weight")

    @with_keywords_of(Compressor.__init__)
    def __init__(
        self, rank: int = 16, *, hidden: int = 768, depth: int = 4, num_heads: int = 6, cosine_weight: float = 1.0,
        cosine_over: Literal["features", "tokens"] = "features", kl_weight: float = 1e-7, learning_rate: float = 5e-4,
        **settings: Any,
    ):  # fmt: skip
        for argument, value in (("depth", depth), ("num_heads", num_heads)):
            if value < 1:
                raise ValueError(f"SemVAE.{argument} = {value}: must be at least 1")
        if hidden % num_heads:
            raise ValueError(f"SemVAE.num_heads = {num_heads}: must divide SemVAE.hidden = {hidden}")
        check_choice("SemVAE.cosine_over", cosine_over, ("features", "tokens"))
        self.depth, self.num_heads = depth, num_heads  # before the base class builds the networks of a file
        self.cosine_weight, self.cosine_over, self.kl_weight = cosine_weight, cosine_over, kl_weight
        super().__init__(rank=rank, hidden=hidden, learning_rate=learning_rate, **settings)

    def _build(self, width: int) -> None:
        self.encode = self._transformer(width, 2 * self.rank).to(self.mean.device)  # mean and log-variance
        self.decode = self._transformer(self.rank, width).to(self.mean.device)

    def _transformer(self, inputs: int, outputs: int) -> "_Tokens":
        options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        width, heads = self.hidden, self.num_heads
        blocks = (nn.TransformerEncoderLayer(width, heads, 4 * width, **options) for _ in range(self.depth))
        return _Tokens(nn.Linear(inputs, width), *blocks, nn.LayerNorm(width), nn.Linear(width, outputs))

    def _code(self, features: Tensor) -> Tensor:
        return self.encode(features)[:, : self.rank]

    def _loss(self, features: Tensor) -> Tensor:
        mean, log_variance = self.encode(features).chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        noise = torch.randn(mean.shape).to(mean.device)  # drawn on the CPU, where the fit has seeded the generator
        restored = self.decode(mean + (log_variance / 2).exp() * noise)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3)).mean() / 2
        tokens, targets = (rearrange(x, "n e h w -> n e (h w)") for x in (restored, features))
        cosine = functional.cosine_similarity(tokens, targets, dim=1 if self.cosine_over == "features" else 2).mean()
        return functional.mse_loss(restored, features) + self.cosine_weight * (1 - cosine) + self.kl_weight * kl


class _Tokens(nn.Sequential):
    """Apply the layers to maps (N, C, h, w) as tokens (N, h w, C)."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = super().forward(rearrange(x, "n c h w -> n (h w) c"))
        return rearrange(tokens, "n (h w) c -> n c h w", h=x.shape[2])
