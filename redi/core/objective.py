"""The joint objective: one corrupted state, one prediction, one error per channel group."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from redi.core.channels import Channels
from redi.core.processes import Process, per_sample, processes
from redi.core.processes.flow_matching import FlowMatching
from redi.core.registry import configurable
from redi.core.resize import resized
from redi.runtime.randomness import Rows


@configurable(runtime=("channels", "num_classes"))
class JointObjective:
    """L = mean |error_image|^2 + sum over representations of lambda_m mean |error_m|^2 (paper, Eq. 6).

    The mean is taken within each group, so lambda does not depend on the number of channels. All groups share t.

    Args:
        process: how x is corrupted and what is predicted.
        representation_weight: lambda, one number for all representations or {name: lambda}.
        label_dropout: probability of the null label, for classifier-free guidance.
        representation_dropout: probability, per sample, that all *noised* representations are zeroed and their
            loss with them (paper, section 3.5: p_drop = 0.2); needed for Representation Guidance.
        dropout_rule: 'paper', as just said; or 'released', what the published code does with its velocity predictions:
            one coin for the whole batch, and the *clean* representations are zeroed, so that the network sees noise.
        independent_timesteps: every group draws a t of its own (beyond the paper), of which the network must be told:
            DiffusionTransformer.group_timesteps = True.
        variance_weight: of the variational bound that trains a learned variance. Nichol & Dhariwal's 0.001, which
            multiplies a sum over 1,000 steps, is 1 for the mean over steps that is taken here.
        alignment_weight: of the REPA term, where the codec has an alignment encoder (Yu et al., arXiv 2410.06940: 0.5).

    Raises:
        ValueError: probabilities outside [0, 1), weights for groups that do not exist, 'released' dropout with another
            prediction than the velocity.
    """

    def __init__(
        self,
        *,
        channels: Channels,
        num_classes: int,
        process: Process | None = None,
        representation_weight: float | Mapping[str, float] = 1.0,
        label_dropout: float = 0.1,
        representation_dropout: float = 0.0,
        dropout_rule: Literal["paper", "released"] = "paper",
        independent_timesteps: bool = False,
        variance_weight: float = 1.0,
        alignment_weight: float = 0.5,
    ):
        process = FlowMatching() if process is None else process
        processes.check(process, "JointObjective.process")
        for name, value in {"label_dropout": label_dropout, "representation_dropout": representation_dropout}.items():
            if not 0 <= value < 1:
                raise ValueError(f"JointObjective.{name} = {value} lies outside [0, 1)")
        if dropout_rule not in ("paper", "released"):
            raise ValueError(f"JointObjective.dropout_rule = {dropout_rule!r}: it is 'paper' or 'released'")
        path = getattr(process, "process", process)  # of Shifted
        if dropout_rule == "released" and representation_dropout and getattr(path, "prediction", None) != "velocity":
            raise ValueError(
                "JointObjective.dropout_rule = 'released' reproduces the published loss for velocity predictions only: "
                "set it to 'paper', or JointObjective.process to one with prediction = 'velocity'"
            )
        if not isinstance(representation_weight, Mapping):
            representation_weight = dict.fromkeys(channels.representations, representation_weight)
        if set(representation_weight) != set(channels.representations):
            names = f"names {sorted(representation_weight)}, the codec has {sorted(channels.representations)}"
            raise ValueError(f"JointObjective.representation_weight {names}")
        if bad := {name: value for name, value in representation_weight.items() if not 0 <= value < math.inf}:
            raise ValueError(f"JointObjective.representation_weight = {bad}: finite numbers of at least 0 are needed")
        for name, value in {"variance_weight": variance_weight, "alignment_weight": alignment_weight}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"JointObjective.{name} = {value}: a finite number of at least 0 is needed")
        self.process, self.channels, self.null_label = process.for_channels(channels), channels, num_classes
        self.weights, self.independent_timesteps = dict(representation_weight), independent_timesteps
        self.label_dropout, self.representation_dropout = label_dropout, representation_dropout
        self.dropout_rule, self.variance_weight, self.alignment_weight = dropout_rule, variance_weight, alignment_weight

    def __call__(
        self, model: Callable[..., Tensor], x: Tensor, y: Tensor, alignment: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Clean states (N, C, H, W) and labels (N,) -> {"loss": (), "image": (), "<representation>": ()}.

        Also "vlb" (bits per dimension, of groups with a learned variance) and "alignment" (REPA's negative cosine with
        the features `alignment` (N, E, h, w)), where there are such terms. Train on "loss" alone; errors of
        representations are over the samples that kept theirs. Draws from torch's default generator.
        """
        return self.losses(model, x, *self.draw(x, y), alignment=alignment)

    def draw(self, x: Tensor, y: Tensor, rows: Rows | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All that is random in a step, from torch's default generator: y, times, noise, dropped, num_kept of `losses`.

        Args:
            rows: which rows of a larger batch x and y are; everything is drawn for all of it, and cut.
        """
        rows = rows or Rows.whole(len(x))
        shape = (rows.total, len(self.channels)) if self.independent_timesteps else (rows.total,)
        times = self.process.draw_times(shape, x.device)
        noise = torch.randn((rows.total, *x.shape[1:]), dtype=x.dtype, device=x.device)
        dropped = torch.rand(rows.total, device=x.device) < self.representation_dropout
        unlabelled = torch.rand(rows.total, device=x.device) < self.label_dropout
        if self.dropout_rule == "released":
            dropped = dropped[:1].expand(rows.total)
        num_kept = (~dropped).sum() * (rows.count / rows.total)
        y = torch.where(rows.of(unlabelled), self.null_label, y)
        return y, rows.of(times), rows.of(noise), rows.of(dropped), num_kept

    def losses(
        self, model: Callable[..., Tensor], x: Tensor, y: Tensor, times: Tensor, noise: Tensor, dropped: Tensor,
        num_kept: Tensor | None = None, alignment: Tensor | None = None, per_sample: bool = False,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The same for given draws, without randomness or branches on values, so that it compiles as one graph.

        Args:
            y: labels, some of them the null label.
            times: t, (N,), or (N, groups).
            noise: (N, C, H, W).
            dropped: (N,) bool, the samples without their representations.
            num_kept: (), by how many the errors of representations are divided; default: the samples that keep theirs.
                For a part of a batch, its share of the batch's number.
            per_sample: return (N,) for every entry. The mean of "loss" is then the batch's loss; a representation's
                error is 0 where it was dropped.
        """
        if self.dropout_rule == "released":
            x = self.channels.mask(x, dropped)
        t = self._expand(times)
        x_t = self.process.mix(x, noise, t)
        if self.dropout_rule == "paper":
            x_t = self.channels.mask(x_t, dropped)

        inputs = (x_t, self.process.model_time(times), y)
        prediction, aligned = (model(*inputs), None) if alignment is None else model(*inputs, align=True)
        num_variances = sum(self.channels[name] for name in self.process.variance_groups)
        expected = (len(x), x.shape[1] + num_variances, *x.shape[2:])
        if prediction.shape != expected:
            what = f"the model gives {tuple(prediction.shape)} for x of {tuple(x.shape)}"
            raise ValueError(f"train.model: {what}, but its prediction has the shape {expected}")
        prediction = prediction.float()
        squared = self.process.error(prediction, x, noise, t).square()
        errors = {name: part.mean(dim=(1, 2, 3)) for name, part in self.channels.split(squared).items()}  # each (N,)
        bounds = self.process.variational_bound(prediction, x, x_t, t)

        kept = (~dropped).float()
        num_kept = (kept.sum() if num_kept is None else num_kept).clamp(min=1e-6)  # where none is kept, the error is 0

        def mean(values: Tensor) -> Tensor:  # (N,)
            return values if per_sample else values.mean()

        def mean_kept(values: Tensor) -> Tensor:  # (N,)
            return values * kept if per_sample else (values * kept).sum() / num_kept

        losses = {"image": mean(errors["image"])}
        loss = losses["image"]
        for name, weight in self.weights.items():
            loss = loss + weight * mean(errors[name] * kept)
            losses[name] = mean_kept(errors[name])
        if bounds:
            shown, terms = [], []
            for name, bound in bounds.items():
                shown.append(mean(bound) if name == "image" else mean_kept(bound))
                terms.append(mean(bound) if name == "image" else self.weights[name] * mean(bound * kept))
            losses["vlb"] = torch.stack(shown).mean(dim=0)
            loss = loss + self.variance_weight * sum(terms)
        if aligned is not None:
            losses["alignment"] = alignment_loss(aligned.float(), alignment.float(), per_sample)
            loss = loss + self.alignment_weight * losses["alignment"]
        return {"loss": loss, **losses}

    def to(self, device: torch.device) -> "JointObjective":
        """Puts the process's tables where the data are, so that no step has to copy them."""
        self.process = self.process.for_channels(self.channels, device)
        return self

    def _expand(self, times: Tensor) -> Tensor:
        """(N,) -> (N, 1, 1, 1); (N, groups) -> (N, C, 1, 1)."""
        if times.ndim == 1:
            return per_sample(times)
        columns = zip(times.split(1, dim=1), self.channels.values(), strict=True)
        return torch.cat([t.expand(-1, size) for t, size in columns], dim=1)[:, :, None, None]

    def model_arguments(self, codec, dataset) -> dict:
        """The arguments of the model's constructor for such a codec and data set, as few as it needs."""
        arguments = {"channels": codec.channels, "grid": codec.grid(dataset.image_size)}
        arguments["num_classes"] = dataset.num_classes
        if self.process.variance_groups:
            arguments["variance_groups"] = self.process.variance_groups
        if codec.alignment is not None:
            arguments["alignment_dim"] = codec.alignment.dim
        return arguments

    def check_model(self, model: object) -> None:
        """Raises ValueError where the model does not take the times that this objective draws."""
        if self.independent_timesteps and not getattr(model, "has_group_times", False):
            advice = "set DiffusionTransformer.group_timesteps = True (and have at least one representation)"
            what = "JointObjective.independent_timesteps = True needs a model that takes each group's t"
            raise ValueError(f"{what}: {advice}")


def alignment_loss(projected: Tensor, features: Tensor, per_sample: bool = False) -> Tensor:
    """The negative mean cosine between projected tokens (N, P, E) and features (N, E, h, w), () or per sample (N,)
    (Yu et al., arXiv 2410.06940, Eq. 6). Features are resized to the tokens' square grid.
    """
    side = math.isqrt(projected.shape[1])
    if side * side != projected.shape[1]:
        raise ValueError(f"alignment needs a square grid of tokens, got {projected.shape[1]}")
    if features.shape[-2:] != (side, side):
        features = resized(features, (side, side))
    cosine = functional.cosine_similarity(projected, rearrange(features, "n e h w -> n (h w) e"), dim=-1)  # (N, P)
    return -(cosine.mean(dim=1) if per_sample else cosine.mean())
