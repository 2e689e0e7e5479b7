"""Merged tokens: the embeddings of all groups are summed patch by patch."""

from torch import Tensor

from redi.fusion import Fusion, register


@register
class Merged(Fusion):
    """h = sum over groups of group_t W_emb; all heads read the same tokens (paper, Eq. 7-8). T = P. The default."""

    def embed(self, x: Tensor) -> Tensor:
        groups = self.channels.split(x)
        return sum(self.embed_group(name, group) for name, group in groups.items()) + self.positions

    def tokens_of(self, tokens: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(self.channels, tokens)

    @property
    def num_tokens(self) -> int:
        return len(self.positions)
