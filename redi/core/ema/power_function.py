"""Averages whose length grows with the training, from which any other length can be made afterwards."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from redi.core.ema import AveragedWeights, copied, lerp, register
from redi.core.ema.profile import check_sigma_rel, exponent

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LENGTHS = "sigma_rels"  # the entry of the extra state that says which averages there are
GROUP = "sigma_rel_"


@register
class PowerFunctionEMA(AveragedWeights):
    """The power-function averages of EDM2 (arXiv 2312.02696, section 3): a step's weight grows with a power of it.

    Initial weights have none, so there is no warmup. From snapshots of the averages an average of any length can be
    made after training (`redi.average`, docs/ema.md).

    Args:
        sigma_rels: lengths of the averages as parts of the training; the first is the one that previews, sampling
            and evaluation take. The paper keeps 0.05 and 0.10.
        snapshot_every: steps from one snapshot to the next; the paper takes 4,096. 0: none.
        snapshot_dtype: in which snapshots are stored: 'float16' (11 bits and a range to 65,504, enough for weights),
            'bfloat16' (8 bits) or 'float32'.
    """

    def __init__(
        self, model: nn.Module, *, sigma_rels: Sequence[float] = (0.05, 0.1), snapshot_every: int = 4096,
        snapshot_dtype: str = "float16",
    ):  # fmt: skip
        what = type(self).__name__
        if isinstance(sigma_rels, str) or not isinstance(sigma_rels, Sequence) or not sigma_rels:
            raise ValueError(f"{what}.sigma_rels = {sigma_rels!r}: a list of lengths is needed, as (0.05, 0.1)")
        lengths = [check_sigma_rel(sigma, f"{what}.sigma_rels") for sigma in sigma_rels]
        if len(set(lengths)) < len(lengths):
            raise ValueError(f"{what}.sigma_rels = {sigma_rels!r} names a length twice")
        if isinstance(snapshot_every, bool) or not isinstance(snapshot_every, int) or snapshot_every < 0:
            raise ValueError(f"{what}.snapshot_every = {snapshot_every!r}: a number of steps, or 0 for no snapshots")
        if snapshot_dtype not in DTYPES:
            raise ValueError(f"{what}.snapshot_dtype = {snapshot_dtype!r}: it is one of {', '.join(DTYPES)}")
        self.exponents = {sigma: exponent(sigma) for sigma in lengths}
        self.averages = {sigma: copied(model) for sigma in lengths}
        self.snapshot_every, self.snapshot_dtype = snapshot_every, DTYPES[snapshot_dtype]

    @property
    def parameters(self) -> dict[str, Tensor]:
        return next(iter(self.averages.values()))

    def update(self, model: nn.Module, step: int) -> None:
        # Step k's share is the integral of the density from k - 1 to k, exactly.
        for sigma, average in self.averages.items():
            lerp(average, model, 1 - (step / (step + 1)) ** (self.exponents[sigma] + 1))

    def extra_state(self) -> dict[str, Tensor]:
        _, *further = lengths = list(self.averages)
        named = {f"{GROUP}{sigma}/{name}": t for sigma in further for name, t in self.averages[sigma].items()}
        return {LENGTHS: torch.tensor(lengths, dtype=torch.float64)} | named

    def load(self, parameters: Mapping[str, Tensor], extra: Mapping[str, Tensor] | None = None) -> None:
        stored = stored_averages(parameters, extra or {})
        if list(stored) != list(self.averages):
            kind = f"of sigma_rels = {tuple(stored)}" if stored else "that are no power-function ones"
            advice = "set train.ema as it was, or begin another run with train.initial_weights"
            own = f"PowerFunctionEMA.sigma_rels = {tuple(self.averages)}"
            raise ValueError(f"the checkpoint holds averages {kind}, and {own}: {advice}")
        for sigma, average in self.averages.items():
            for name, tensor in average.items():
                tensor.copy_(stored[sigma][name])

    def snapshot(self, step: int) -> dict[str, dict[str, Tensor]] | None:
        if not self.snapshot_every or step % self.snapshot_every:
            return None
        return {
            f"{GROUP}{sigma}": {name: tensor.to(self.snapshot_dtype) for name, tensor in average.items()}
            for sigma, average in self.averages.items()
        }


def stored_averages(parameters: Mapping[str, Tensor], extra: Mapping[str, Tensor]) -> dict[float, dict[str, Tensor]]:
    """{sigma_rel: average} of a checkpoint's groups "ema" and "averages"; {} where another class wrote them."""
    if LENGTHS not in extra:
        return {}
    first, *further = extra[LENGTHS].tolist()
    averages: dict[float, dict[str, Tensor]] = {first: dict(parameters)} | {sigma: {} for sigma in further}
    for key, tensor in extra.items():
        sigma, _, name = key.removeprefix(GROUP).partition("/")
        if name:
            averages[float(sigma)][name] = tensor
    return averages
