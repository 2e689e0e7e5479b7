"""Power-function averages of the weights, from which an average of any length can be reconstructed after training."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from redi.core.ema import AveragedWeights, copied, lerp, register
from redi.core.ema.profile import check_sigma_rel, exponent

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LENGTHS = "sigma_rels"  # the entry of the extra state that lists the averages
GROUP = "sigma_rel_"


@register
class PowerFunctionEMA(AveragedWeights):
    """Power-function averages, which weight step tau by tau^gamma (EDM2: Karras et al., arXiv 2312.02696, section 3).

    The initial weights have weight 0, so there is no warmup. `redi.average` reconstructs an average of any length from
    the snapshots after training (docs/ema.md).

    Args:
        sigma_rels: lengths of the averages, as fractions of the run. Previews, sampling and evaluation use the first.
            EDM2 keeps 0.05 and 0.10.
        snapshot_every: steps between snapshots. EDM2 uses 4,096. 0: no snapshots.
        snapshot_dtype: dtype of stored snapshots: 'float16' (11 significant bits and a range to 65,504, enough for
            weights), 'bfloat16' (8 bits) or 'float32'.

    Examples:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> ema = PowerFunctionEMA(model, sigma_rels=(0.05, 0.1))
        >>> _ = nn.init.ones_(model.weight)
        >>> ema.update(model, step=0)  # the first step has all the weight
        >>> [average["weight"].item() for average in ema.averages.values()]
        [1.0, 1.0]
    """

    def __init__(
        self, model: nn.Module, *, sigma_rels: Sequence[float] = (0.05, 0.1), snapshot_every: int = 4096,
        snapshot_dtype: str = "float16",
    ):  # fmt: skip
        what = type(self).__name__
        if isinstance(sigma_rels, str) or not isinstance(sigma_rels, Sequence) or not sigma_rels:
            raise ValueError(f"{what}.sigma_rels = {sigma_rels!r}: must be a list of lengths, such as (0.05, 0.1)")
        lengths = [check_sigma_rel(sigma, f"{what}.sigma_rels") for sigma in sigma_rels]
        if len(set(lengths)) < len(lengths):
            raise ValueError(f"{what}.sigma_rels = {sigma_rels!r}: every length must be different")
        if isinstance(snapshot_every, bool) or not isinstance(snapshot_every, int) or snapshot_every < 0:
            raise ValueError(f"{what}.snapshot_every = {snapshot_every!r}: must be a number of steps, or 0 for none")
        if snapshot_dtype not in DTYPES:
            raise ValueError(f"{what}.snapshot_dtype = {snapshot_dtype!r}: must be one of {', '.join(DTYPES)}")
        self.exponents = {sigma: exponent(sigma) for sigma in lengths}
        self.averages = {sigma: copied(model) for sigma in lengths}
        self.snapshot_every, self.snapshot_dtype = snapshot_every, DTYPES[snapshot_dtype]

    @property
    def parameters(self) -> dict[str, Tensor]:  # type: ignore[override]  # read-only
        """The first average."""
        return next(iter(self.averages.values()))

    def update(self, model: nn.Module, step: int) -> None:
        # The weight of a step is the exact integral of the density over this step.
        for sigma, average in self.averages.items():
            lerp(average, model, 1 - (step / (step + 1)) ** (self.exponents[sigma] + 1))

    def extra_state(self) -> dict[str, Tensor]:
        _, *others = lengths = list(self.averages)
        tensors = {f"{GROUP}{sigma}/{name}": t for sigma in others for name, t in self.averages[sigma].items()}
        return {LENGTHS: torch.tensor(lengths, dtype=torch.float64)} | tensors

    def load(self, parameters: Mapping[str, Tensor], extra: Mapping[str, Tensor] | None = None) -> None:
        stored = stored_averages(parameters, extra or {})
        if list(stored) != list(self.averages):
            kind = f"with sigma_rels = {tuple(stored)}" if stored else "of another EMA class"
            setting = f"PowerFunctionEMA.sigma_rels = {tuple(self.averages)}"
            advice = "set train.ema as in the training run, or start a new run with train.initial_weights"
            raise ValueError(f"the checkpoint holds averages {kind}, but {setting}: {advice}")
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
    """Return {sigma_rel: average} from the groups "ema" and "averages" of a checkpoint; {} for another EMA class."""
    if LENGTHS not in extra:
        return {}
    first, *others = extra[LENGTHS].tolist()
    averages: dict[float, dict[str, Tensor]] = {first: dict(parameters)} | {sigma: {} for sigma in others}
    for key, tensor in extra.items():
        sigma, _, name = key.removeprefix(GROUP).partition("/")
        if name:
            averages[float(sigma)][name] = tensor
    return averages
