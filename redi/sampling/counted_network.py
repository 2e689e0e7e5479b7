"""The network as the sampler calls it: its weights, precision, compilation and number of evaluations."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from redi.models.interface import choose_attention_of
from redi.runtime.device import Precision, compile_full_graph, matmul_precision


class CountedNetwork:
    """A copy of the model with `weights` and a precision, which counts evaluations. The model itself is not changed.

    Examples:
        >>> from redi.runtime.device import choose_precision
        >>> device = torch.device("cpu")
        >>> network = CountedNetwork(nn.Identity(), {}, choose_precision("float32", device), False, device)
        >>> network.evaluations
        0
    """

    def __init__(
        self, model: nn.Module, weights: Mapping[str, Tensor], how: Precision, compiled: bool, device: torch.device
    ):  # fmt: skip
        tensors = {id(p): weights.get(name, p) for name, p in model.named_parameters()}
        memo = {key: nn.Parameter(tensor.detach(), requires_grad=False) for key, tensor in tensors.items()}
        net = copy.deepcopy(model, memo).eval()  # parameters in `memo` are used as they are, not copied
        net.to(device)
        choose_attention_of(net, device, how.dtype)
        self.feature_shape = getattr(model, "feature_shape", None)
        self.how, self.graphs = how, compiled and device.type == "cuda"
        self.predict = compile_full_graph(net, "reduce-overhead" if self.graphs else None) if compiled else net
        self.evaluations = 0  # images times conditions

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, **asks: bool) -> Any:
        self.evaluations += len(x)
        with matmul_precision(self.how.name), self.how.autocast(x.device):
            outputs = self.predict(x, t, y, **asks)
        # Copied, because the next replay reuses the memory.
        return tree_map(lambda output: output.to(torch.float32, copy=self.graphs), outputs)
