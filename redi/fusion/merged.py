"""Merged tokens: the embeddings of all groups are summed patch by patch."""

import logging
import re
from collections.abc import Collection, Mapping
from functools import wraps

from torch import Tensor

from redi.fusion import Fusion, register

log = logging.getLogger(__name__)


@register
class Merged(Fusion):
    """h = sum over groups of group_t W_emb; all heads read the same tokens (paper, Eq. 7-8). T = P. The default.

    As in the published models the sum has one bias, that of the image's embedding: with one for every group it would
    move under Adam by as many times the published step.
    """

    @wraps(Fusion.__init__)
    def __init__(self, **arguments):
        super().__init__(**arguments)
        for name in self.channels.representations:  # after they were made, so that the same random numbers are drawn
            self.embeddings[name].register_parameter("bias", None)
        self.register_load_state_dict_pre_hook(_take_one_bias)

    def embed(self, x: Tensor) -> Tensor:
        groups = self.channels.split(x)
        return sum(self.embed_group(name, group) for name, group in groups.items()) + self.positions

    def tokens_of(self, tokens: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(self.channels, tokens)

    @property
    def num_tokens(self) -> int:
        return len(self.positions)


EMBEDDING_BIAS = re.compile(r"\bembeddings\.[^./]+\.bias$")


def with_one_bias(
    groups: Mapping[str, Mapping[str, Tensor]], parameters: Collection[str]
) -> dict[str, dict[str, Tensor]]:
    """Sum the embedding biases of a checkpoint that has one for every group, where the model has one alone.

    Exact for weights and averages. Of the optimizer's moments, which are equal, the image's are kept.

    Args:
        groups: {"model", "ema", "averages", "optimizer", ...}, or some of them; a parameter's name stands in a tensor's
            name between slashes.
        parameters: names of the model's parameters.
    """
    result, surplus = {group: dict(tensors) for group, tensors in groups.items()}, set()
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
        log.info("an older checkpoint: %s are summed into the image's embedding bias", ", ".join(sorted(surplus)))
    return result


def _take_one_bias(fusion: Merged, state: dict, prefix: str, *_) -> None:
    """Before loading, for state dicts from before the groups shared one bias."""
    tensors = with_one_bias({"model": state}, [prefix + name for name, _ in fusion.named_parameters()])["model"]
    state.clear()
    state.update(tensors)
