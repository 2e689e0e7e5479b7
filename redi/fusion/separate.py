"""Separate tokens: the token sequences of the channel groups are concatenated."""

import torch
from torch import Tensor

from redi.fusion import Fusion, register


@register
class Separate(Fusion):
    """Concatenated embeddings h = [x_t W^x_emb, z_t W^z_emb, ...]; each head reads its own tokens (paper, Eq. 9-10).

    T is P times the number of maps, plus one for every vector. With one representation this is about twice the compute
    of `Merged`; the paper reports a slightly better FID (Table 5).

    Examples:
        The second half of the sequence is the embedding of the representation.

        >>> from redi.core.channels import Channels
        >>> fusion = Separate(channels=Channels(image=4, dinov2=8), grid=(8, 8), patch_size=2, width=32)
        >>> x = torch.randn(1, 12, 8, 8)
        >>> expected = fusion.embed_group("dinov2", x[:, 4:]) + fusion.positions
        >>> torch.equal(fusion.embed(x)[:, 16:], expected)
        True
    """

    def embed(self, x: Tensor) -> Tensor:
        groups = self.channels.split(x)
        maps = [self.embed_group(name, groups[name]) + self.positions for name in self.channels.maps]
        return torch.cat([*self.embed_vectors(groups), *maps], dim=1)

    def tokens_of(self, tokens: Tensor) -> dict[str, Tensor]:
        vectors, maps = self.split_vectors(tokens)
        names = self.channels.maps
        return dict(zip(names, maps.chunk(len(names), dim=1), strict=True)) | vectors

    @property
    def num_tokens(self) -> int:
        return len(self.channels.vectors) + len(self.positions) * len(self.channels.maps)
