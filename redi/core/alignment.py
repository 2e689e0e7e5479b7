"""REPA: hidden tokens of the network are aligned with the features of encoders (Yu et al., arXiv 2410.06940)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from redi.core.resize import resized
from redi.runtime.ranges import check_choice, check_number

Loss = Literal["cosine", "mse", "cosine+mse"]
LOSSES = {
    "cosine": lambda tokens, targets: -functional.cosine_similarity(tokens, targets, dim=-1),
    "mse": lambda tokens, targets: (tokens - targets).square().mean(dim=-1),
}
Features = Tensor | Mapping[str, Tensor]  # of one encoder, or of several by name


class Alignment:
    """REPA's term of the objective, with the settings `JointObjective.alignment_...`.

    Args:
        weight: factor of the term, at least 0.
        end_step: the first step without the term (HASTE stops early in training); 0: never; None: it never ends.
        normalisation: alpha in [0, 1] of iREPA's targets, see `normalised`; None: the features as they are.
        loss: 'cosine', 'mse' or 'cosine+mse', see `alignment_loss`.
        vectors: {group: length} of vectors whose tokens are aligned too; None: patches alone.

    Examples:
        >>> alignment = Alignment(end_step=250_000)
        >>> alignment.active(249_999), alignment.active(250_000)
        (True, False)
    """

    def __init__(
        self, weight: float = 0.5, end_step: int | None = None, normalisation: float | None = None,
        loss: Loss = "cosine", vectors: Mapping[str, int] | None = None,
    ):  # fmt: skip
        check_number("JointObjective.alignment_weight", weight, least=0, whole=False)
        if end_step is not None:
            check_number("JointObjective.alignment_end_step", end_step, least=0, note="None: the term never ends")
        if normalisation is not None and not 0 <= normalisation <= 1:
            allowed = "must be in [0, 1], or None for features as they are"
            raise ValueError(f"JointObjective.alignment_normalisation = {normalisation}: {allowed}")
        check_choice("JointObjective.alignment_loss", loss, get_args(Loss))
        if vectors is not None and not vectors:
            what = "must be False, because no representation of the codec is a vector; bind Representation.vector"
            raise ValueError(f"JointObjective.alignment_vectors = True: {what}")
        self.weight, self.end_step, self.normalisation, self.loss = weight, end_step, normalisation, loss
        self.vectors = vectors or {}

    def active(self, step: int) -> bool:
        """Return whether the loss of this step, counted from 0, has the term."""
        return self.end_step is None or step < self.end_step

    def check_widths(self, widths: Iterable[int]) -> None:
        """Raise ValueError if a vector cannot be a target, because the features have other widths E."""
        for name, length in self.vectors.items():
            if others := sorted({*widths} - {length}):
                what = f"{name} has {length} numbers, JointCodec.alignment {others}: must be equal"
                advice = "keep all with reducers.Identity, or set it to False"
                raise ValueError(f"JointObjective.alignment_vectors = True: {what}; {advice}")

    def __call__(
        self, projected: Features, features: Features, per_sample: bool = False, vectors: Sequence[Tensor] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the term, and the `alignment_loss` of every encoder by name: each () or (N,).

        Tokens (N, P, E) and features (N, E, h, w) of one encoder are called "alignment"; those of several are mappings.
        The term is the weight times the mean over the encoders. `vectors` are targets (N, E) of the first tokens, see
        `alignment_loss`.
        """
        tokens, targets = (v if isinstance(v, Mapping) else {"alignment": v} for v in (projected, features))
        options = per_sample, self.normalisation, self.loss, vectors
        losses = {name: alignment_loss(tokens[name].float(), one.float(), *options) for name, one in targets.items()}
        return self.weight * torch.stack([*losses.values()]).mean(dim=0), losses


def alignment_loss(
    projected: Tensor, features: Tensor, per_sample: bool = False, normalisation: float | None = None,
    loss: Loss = "cosine", vectors: Sequence[Tensor] = (),
) -> Tensor:  # fmt: skip
    """Return the loss of projected tokens (N, V + P, E) against vectors and features (N, E, h, w): () or (N,).

    'cosine' is the negative mean cosine (REPA: Yu et al., arXiv 2410.06940, Eq. 6; SFD's code adds 1), 'mse' the mean
    squared error, and 'cosine+mse' the mean of both. All are means over the tokens. Features are resized to the square
    grid of the tokens, and `normalised` there unless `normalisation` is None. The targets of the first V tokens are
    `vectors`, each (N, E), which have no positions and stay as they are.

    Examples:
        >>> import torch
        >>> features = torch.randn(2, 16, 4, 4)
        >>> tokens = rearrange(features, "n e h w -> n (h w) e")
        >>> round(float(alignment_loss(2 * tokens, features)), 4)  # the scale does not matter
        -1.0
        >>> float(alignment_loss(tokens, features, loss="mse"))
        0.0
    """
    targets = target_tokens(features, projected.shape[1] - len(vectors), normalisation)
    if vectors:
        targets = torch.cat([*(vector[:, None].to(targets) for vector in vectors), targets], dim=1)
    parts = [LOSSES[part](projected, targets) for part in loss.split("+")]  # each (N, V + P)
    tokens = sum(parts[1:], parts[0]) / len(parts)
    return tokens.mean(dim=1) if per_sample else tokens.mean()


def target_tokens(features: Tensor, num_patches: int, normalisation: float | None = None) -> Tensor:
    """Return features (N, E, h, w) on the square grid of the tokens, normalised there, as tokens (N, P, E)."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(f"REPA alignment of {num_patches} tokens: must be a square number; use square images")
    if features.shape[-2:] != (side, side):
        features = resized(features, (side, side))
    features = features if normalisation is None else normalised(features, normalisation)
    return rearrange(features, "n e h w -> n (h w) e")


def normalised(features: Tensor, alpha: float) -> Tensor:
    """Return (f - alpha mean) / (std + 1e-6) for features f (N, E, h, w), per image and channel.

    Mean and (unbiased) standard deviation are over the positions, at least two. iREPA uses alpha = 0.6 in latent space.

    Examples:
        >>> import torch
        >>> features = normalised(5 + torch.randn(2, 16, 4, 4), 1.0)
        >>> bool(features.mean(dim=(2, 3)).abs().max() < 1e-5)
        True
    """
    mean = features.mean(dim=(2, 3), keepdim=True)
    return (features - alpha * mean) / (features.std(dim=(2, 3), keepdim=True) + 1e-6)
