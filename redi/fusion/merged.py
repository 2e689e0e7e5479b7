"""Merged tokens: the embeddings of the channel groups are summed patch by patch."""

import logging
import re
from collections.abc import Collection, Mapping
from functools import wraps

import torch
from torch import Tensor

from redi.fusion import Fusion, register

log = logging.getLogger(__name__)


@register
class Merged(Fusion):
    """Summed embeddings h = x_t W^x_emb + z_t W^z_emb + ...; all heads read the same tokens (paper, Eq. 7-8).

    T = P + V, so a representation adds almost no compute; each of V vectors has a token of its own. As in the published
    models, only the embedding of the image has a bias: with a bias per map, Adam would take a larger step on their sum.

    Examples:
        >>> from redi.core.channels import Channels
        >>> fusion = Merged(channels=Channels(image=4, dinov2=8), grid=(8, 8), patch_size=2, width=32)
        >>> x = torch.randn(1, 12, 8, 8)
        >>> embedded = fusion.embed_group("image", x[:, :4]) + fusion.embed_group("dinov2", x[:, 4:])
        >>> torch.allclose(fusion.embed(x), embedded + fusion.positions, atol=1e-6), fusion.num_tokens
        (True, 16)
    """

    @wraps(Fusion.__init__)  # type: ignore[misc]  # the same arguments, which gin reads from the signature
    def __init__(self, **arguments):
        super().__init__(**arguments)
        for name in self.channels.maps[1:]:  # removed afterwards: initialization draws the same numbers
            self.embeddings[name].register_parameter("bias", None)
        self.register_load_state_dict_pre_hook(_take_one_bias)

    def embed(self, x: Tensor) -> Tensor:
        groups = self.channels.split(x)
        maps = sum(self.embed_group(name, groups[name]) for name in self.channels.maps) + self.positions
        return torch.cat([*vectors, maps], dim=1) if (vectors := self.embed_vectors(groups)) else maps

    def tokens_of(self, tokens: Tensor) -> dict[str, Tensor]:
        vectors, maps = self.split_vectors(tokens)
        return dict.fromkeys(self.channels.maps, maps) | vectors

    @property
    def num_tokens(self) -> int:
        return len(self.positions) + len(self.channels.vectors)


EMBEDDING_BIAS = re.compile(r"\bembeddings\.[^./]+\.bias$")


def with_one_bias(
    groups: Mapping[str, Mapping[str, Tensor]], parameters: Collection[str]
) -> dict[str, dict[str, Tensor]]:
    """Convert a checkpoint with one embedding bias per group to a model with a single bias, by summing the biases.

    The conversion is exact for weights and their averages. The optimizer's moments of all biases are equal, so those
    of the image are kept.

    Args:
        groups: {checkpoint group: {name: tensor}} for groups such as "model", "ema" and "optimizer". A name is that of
            the parameter, or a path that contains it, such as "<parameter>/exp_avg".
        parameters: names of the parameters of the model.
    """
    result = {group: dict(tensors) for group, tensors in groups.items()}
    surplus: set[str] = set()
    for group, tensors in groups.items():
        for key, tensor in tensors.items():
            name = next((part for part in key.split("/") if EMBEDDING_BIAS.search(part)), None)
            one = EMBEDDING_BIAS.sub("embeddings.image.bias", name or "")
            if name is None or name in parameters or one not in parameters:
                continue
            surplus.add(name)
            del result[group][key]
            if group != "optimizer":
                result[group][key.replace(name, one)] = result[group][key.replace(name, one)] + tensor
    if surplus and "optimizer" in groups:
        log.info("older checkpoint: adding %s to the embedding bias of the image", ", ".join(sorted(surplus)))
    return result


def _take_one_bias(fusion: Merged, state: dict, prefix: str, *_) -> None:
    """Convert the state dict of an older version, with one bias per group, before it is loaded."""
    tensors = with_one_bias({"model": state}, [prefix + name for name, _ in fusion.named_parameters()])["model"]
    state.clear()
    state.update(tensors)
