"""The training objective of the joint state: one prediction, and a loss per channel group."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from redi.core.alignment import Alignment, Features, Loss
from redi.core.channels import Channels
from redi.core.clocks import Clock, clocks
from redi.core.clocks.independent import Independent
from redi.core.clocks.shared import Shared
from redi.core.dropout import check_dropout
from redi.core.losses import GroupMeans, TimeWeight, check_terms, cosine_errors, group_weights, sums_by_time
from redi.core.network_needs import NetworkNeeds
from redi.core.own_times import OwnTimes
from redi.core.parts import WithParts
from redi.core.predicted_features import PredictedFeatures
from redi.core.processes import Process, processes
from redi.core.processes.clocked import Clocked
from redi.core.processes.flow_matching import FlowMatching
from redi.core.projections import predict, project
from redi.core.registry import configurable
from redi.core.time_distributions import TimeDistribution, time_distributions
from redi.core.time_distributions.uniform import Uniform
from redi.runtime.randomness import Rows


@configurable(runtime=("channels", "num_classes"))
class JointObjective(NetworkNeeds, WithParts):
    """The joint objective (paper, Eq. 6) with noise or velocity errors, depending on the process.

    `L = mean |error_image|^2 + sum_m lambda_m mean |error_m|^2` over the representations m

    Each mean is over one group, so lambda does not depend on the number of channels.

    Args:
        process: the path from noise to data and the target of the prediction. Default: FlowMatching.
        clock: the time of each group. Default: Shared, one t for all groups, as in the paper.
        time_distribution: the distribution of the (shared) training times. Default: Uniform.
        representation_weight: lambda, one number for all representations or {name: lambda}.
        label_dropout: probability of the null label, for classifier-free guidance.
        representation_dropout: probability per sample that its noised representations and their loss are set to zero
            (paper, section 3.5: p_drop = 0.2). Representation Guidance needs it.
        joint_dropout: probability per sample of a further draw that drops its label and its representations together,
            for `ClassifierFree(null='label+representations')`. V-Co, arXiv 2603.16792: 0.1, and 0 for the other two.
        dropout_rule: 'paper': as above. 'released': as in the published code, for velocity predictions only. One draw
            decides for the whole batch, and the clean representations are set to zero before noise is added.
        independent_timesteps: the former name of clock = Independent(), kept for one version.
        variance_weight: weight of the variational bound that trains a learned variance. The 0.001 of Nichol & Dhariwal
            multiplies a sum over 1,000 steps; it equals 1 here, because the bound is a mean over steps.
        cosine_weight: weight of 1 - the cosine over the channels between the predicted and the true velocity, a mean
            over positions (LightningDiT, arXiv 2501.01423, and SFD use 1). Dropped representations do not count.
        cosine_over: 'state': one cosine over the channels of all groups on the grid, as in SFD, whatever lambda is.
            'groups': one for each group, weighted by lambda like its error; that of a vector is over its numbers.
        time_weight: a function (process, t) -> weight of the squared errors, which broadcasts against (N, C, H, W), for
            example `min_snr`. `process.own_time(t)` gives the own times of the groups. Default: 1.
        own_times: the distribution of the own times of a group that its squared errors count by, whatever the clock: a
            time distribution q, or 'kept' for that of the drawn times. See `OwnTimes.weight`. Default: as the clock
            puts them, and 'kept' while a clock is learned.
        kinetic_weight: weight of the kinetic energy of the curves while a clock is learned, see `kinetic_energies`.
        inner_layer: number of the block (from 1) with its own prediction, for `InnerGuidance`. RAEv2: 8. Default: none.
        inner_weight: weight of the loss of that prediction. RAEv2, arXiv 2605.18324, uses 1.
        alignment_weight: weight of the REPA term if the codec has an alignment encoder (its mean over several). Yu et
            al., arXiv 2410.06940, use 0.5.
        alignment_end_step: the first step without REPA (HASTE: 250,000 of 400,000); 0: never on. Default: no end.
        alignment_normalisation: alpha of iREPA's targets (f - alpha mean) / std over the positions of each image, in
            [0, 1]. iREPA uses 0.6. Default: the features as they are.
        alignment_loss: 'cosine', as in REPA, 'mse', or 'cosine+mse', the mean of both, as in SFD's later recipe.
        alignment_vectors: align the tokens of vectors too, with the clean vectors as targets: REPA's mean is over V + P
            tokens, as in REG (arXiv 2507.01467). A vector must have the length of the features, E.
        predicted_features: predict the features of the alignment encoder and feed them back, in two passes. Default:
            one pass, without a condition.

    Examples:
        A model that predicts 0 has the mean squared velocity `|x - noise|^2` as its loss: 1 + 1 for normal data.

        >>> objective = JointObjective(channels=Channels(image=4, dinov2=8), num_classes=10, representation_weight=0.5)
        >>> generator = torch.manual_seed(0)
        >>> x, y = torch.randn(64, 12, 16, 16), torch.zeros(64, dtype=torch.long)
        >>> losses = objective(lambda x_t, t, y: torch.zeros_like(x_t), x, y)
        >>> {name: round(float(value), 1) for name, value in losses.items()}
        {'loss': 3.0, 'image': 2.0, 'dinov2': 2.0}
    """

    def __init__(
        self, *, channels: Channels, num_classes: int, process: Process | None = None,
        representation_weight: float | Mapping[str, float] = 1.0, label_dropout: float = 0.1,
        representation_dropout: float = 0.0, dropout_rule: Literal["paper", "released"] = "paper",
        independent_timesteps: bool = False, variance_weight: float = 1.0, alignment_weight: float = 0.5,
        clock: Clock | None = None, time_distribution: TimeDistribution | None = None, joint_dropout: float = 0.0,
        cosine_weight: float = 0.0, cosine_over: Literal["state", "groups"] = "state",
        time_weight: TimeWeight | None = None, inner_layer: int | None = None, inner_weight: float = 1.0,
        alignment_end_step: int | None = None, alignment_normalisation: float | None = None,
        alignment_loss: Loss = "cosine", alignment_vectors: bool = False,
        own_times: Literal["kept"] | TimeDistribution | None = None, kinetic_weight: float = 0.0,
        predicted_features: PredictedFeatures | None = None,
    ):  # fmt: skip
        super().__init__()
        process = FlowMatching() if process is None else process
        processes.check(process, "JointObjective.process")
        clock = (Independent() if independent_timesteps else Shared()) if clock is None else clock
        clocks.check(clock, "JointObjective.clock")
        if independent_timesteps and not clock.independent:
            what = f"JointObjective.independent_timesteps = True with JointObjective.clock = {type(clock).__name__}"
            raise ValueError(f"{what}: bind the clock alone; independent_timesteps is the former name of Independent")
        self.time_distribution = Uniform() if time_distribution is None else time_distribution
        time_distributions.check(self.time_distribution, "JointObjective.time_distribution")
        self.label_dropout, self.representation_dropout = label_dropout, representation_dropout
        self.joint_dropout, self.dropout_rule = joint_dropout, dropout_rule
        check_dropout(self.trained_with, dropout_rule, getattr(process, "process", process))  # the path inside Shifted
        process = Clocked(process, clock := clock.for_channels(channels)) if clock.separate else process
        self.time_distribution.check(process)
        self.own_times = OwnTimes(own_times, self.time_distribution, kinetic_weight, clock)
        settings = alignment_end_step, alignment_normalisation, alignment_loss
        self.alignment = Alignment(alignment_weight, *settings, channels.vectors if alignment_vectors else None)
        self.variance_weight, self.inner_layer, self.inner_weight = variance_weight, inner_layer, inner_weight
        if not isinstance(predicted_features, PredictedFeatures | None):
            what = f"JointObjective.predicted_features = {predicted_features!r}"
            raise ValueError(f"{what}: must be @PredictedFeatures(), or None for features that are not predicted")
        self.predicted_features = predicted_features
        self.cosine_weight, self.cosine_over, self.time_weight = cosine_weight, cosine_over, time_weight
        self.process, self.channels, self.null_label = process.for_channels(channels), channels, num_classes
        self.clock, self.weights = clock.for_channels(channels), group_weights(representation_weight, channels)
        self.parts.update({} if self.clock.module is None else {"clock": self.clock.module})
        self.own_times.check(self.process, cosine_weight)
        check_terms(self.process, variance_weight, cosine_weight, cosine_over, time_weight, inner_layer, inner_weight)

    def __call__(
        self, model: Callable[..., Tensor], x: Tensor, y: Tensor, alignment: Features | None = None
    ) -> dict[str, Tensor]:
        """Return {"loss": (), "image": (), "<representation>": ()} for clean states (N, C, H, W) and labels (N,).

        Train on "loss"; the other entries are for logging. The error of a representation is a mean over the samples in
        which it was not dropped. A learned variance adds "vlb" (bits per dimension). The features `alignment`
        (N, E, h, w) add "alignment", REPA's negative cosine (a mapping: one for each encoder), and `inner_layer` adds
        "inner", the loss of the inner prediction. Random numbers come from torch's default generator.
        """
        return self.losses(model, x, *self.draw(x, y), alignment=alignment, **self.draw_more(x))

    def draw(self, x: Tensor, y: Tensor, rows: Rows | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Draw the random arguments of `losses` from torch's default generator: y, times, noise, dropped, num_kept.

        `rows` is the position of x and y in a larger batch. Numbers are drawn for the whole batch and then sliced.
        """
        rows = rows or Rows.whole(len(x))
        shape = (rows.total, len(self.channels)) if self.clock.independent else (rows.total,)
        times = self.time_distribution.draw(self.process, shape, x.device, tuple(x.shape[1:]))
        noise = self.channels.trim(torch.randn((rows.total, *x.shape[1:]), dtype=x.dtype, device=x.device))
        dropped = torch.rand(rows.total, device=x.device) < self.representation_dropout
        unlabelled = torch.rand(rows.total, device=x.device) < self.label_dropout
        if self.joint_dropout:  # drawn last, so that the other numbers are the same without it
            both = torch.rand(rows.total, device=x.device) < self.joint_dropout
            dropped, unlabelled = dropped | both, unlabelled | both
        if self.dropout_rule == "released":
            dropped = dropped[:1].expand(rows.total)
        num_kept = (~dropped).sum() * (rows.count / rows.total)
        y = torch.where(rows.of(unlabelled), self.null_label, y)
        return y, rows.of(times), rows.of(noise), rows.of(dropped), num_kept

    def draw_more(self, x: Tensor, rows: Rows | None = None) -> dict[str, Any]:
        """Draw further arguments of `losses` by name, after `draw` and in the same way, each (n,)."""
        if self.predicted_features is None:
            return {}
        return {"sources": self.predicted_features.draw(rows or Rows.whole(len(x)), x.device)}

    def losses(
        self, model: Callable[..., Tensor], x: Tensor, y: Tensor, times: Tensor, noise: Tensor, dropped: Tensor,
        num_kept: Tensor | None = None, alignment: Features | None = None, per_sample: bool = False,
        by_time: bool = False, stored: Mapping[str, Tensor] | None = None, sources: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Return the losses of `__call__` for fixed draws. Compiles as one graph: no randomness, no branches on values.

        Args:
            model: (x_t, model time, y) -> prediction; with inner=True, then align=True (or 'all'), also these outputs.
            x, noise: clean states and noise (N, C, H, W).
            y: labels (N,), already with null labels.
            times: t, (N,) or (N, groups).
            dropped: (N,) bool, True for samples whose representations are dropped.
            num_kept: (), the divisor of the errors of representations. Default: the number of samples that are not
                dropped. For part of a batch, pass its share of the number in the whole batch.
            alignment: target features (N, E, h, w) of REPA; of several encoders {name: features}.
            per_sample: return (N,) for every entry, with errors of 0 for dropped representations. The mean of "loss" is
                the loss of the batch.
            by_time: add "loss_by_t/<group>" (2, 10): the sum of the squared errors, without `time_weight`, and the
                number of samples that keep the group, in ten equal bins of the group's own t.
            stored: {group: channels (N, S, h, w) of a cache} of the groups that `projections` replace in x. Their
                gradient reaches the projections through the input of the model alone.
            sources: (N,), the source of each condition (`PredictedFeatures.draw`). Default: the first pass.
        """
        x, extra, values = project(self.projections, self.channels, x, stored) if stored else (x, 0.0, {})
        targets = [self.channels.unpadded(x.detach())[name].flatten(1) for name in self.alignment.vectors]
        if self.dropout_rule == "released":
            x = self.channels.mask(x, dropped)
        t = self.channels.expand(times)
        x_t = self.process.mix(x, noise, t)
        if self.dropout_rule == "paper":
            x_t = self.channels.mask(x_t, dropped)
        asks: dict[str, object] = {"inner": True} if self.inner_layer else {}
        asks |= {} if alignment is None else {"align": "all" if targets else True}
        alone = [name for name in stored or () if not self.projections[name].image_gradient]
        num_channels = x.shape[1] + sum(self.channels[name] for name in self.process.variance_groups)
        inputs = x_t, self.process.model_time(times), y
        if (passes := self.predicted_features) is not None:
            asks["features"] = passes.condition(model, inputs, alignment, sources, self.alignment.normalisation)
        prediction, *further = predict(model, inputs, asks, num_channels, self.channels, alone)
        x, x_t = (x.detach(), x_t.detach()) if stored else (x, x_t)  # a projection moves the input alone
        means = GroupMeans(self.weights, (~dropped).float(), num_kept, per_sample)
        state = (x, noise, x_t, t, dropped)
        loss, losses, errors = self._of_prediction(prediction.float(), *state, means)
        term, named = self.own_times.terms(self.process, self.channels, x, means)
        loss, losses = loss + term, losses | named
        sums = sums_by_time(errors, means.keep, self.process.own_time(t), self.channels) if by_time else {}
        if alignment is not None:
            term, named = self.alignment(further[-1], alignment, per_sample, targets)
            loss, losses = loss + term, losses | named
        if self.inner_layer:
            losses["inner"], *_ = self._of_prediction(further[0].float(), *state, means)
            loss = loss + self.inner_weight * losses["inner"]
        return {"loss": loss + extra, **losses, **values, **sums}

    def _of_prediction(
        self, prediction: Tensor, x: Tensor, noise: Tensor, x_t: Tensor, t: Tensor, dropped: Tensor, means: GroupMeans
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the loss of a prediction, its terms by name, and {group: (N,)}, the errors without `time_weight`."""
        squared = self.channels.trim(self.process.error(prediction, x, noise, t).square())
        errors = self.channels.means(squared)
        bounds = self.process.variational_bound(prediction, x, x_t, t)
        weight = self.own_times.weight(self.process, t, tuple(x.shape[1:]), self.time_weight)
        weighted = errors if weight is None else self.channels.means(squared * weight)
        losses = {name: means.of(name, error) for name, error in weighted.items()}
        loss = means.total(weighted)
        if bounds:
            losses["vlb"] = torch.stack([means.of(name, bound) for name, bound in bounds.items()]).mean(dim=0)
            loss = loss + self.variance_weight * means.total(bounds)
        if self.cosine_weight:
            state = (prediction, x, noise, x_t, t, dropped)
            losses["cosine"] = means.total(cosine_errors(self.process, self.channels, self.cosine_over, *state))
            loss = loss + self.cosine_weight * losses["cosine"]
        return loss, losses, errors

    def to(self, device: torch.device) -> "JointObjective":
        """Move the tables of the process to the device, so that training steps do not copy them."""
        self.process = self.process.for_channels(self.channels, device)
        if "clock" in self.parts and isinstance(self.process, Clocked):  # parts may be copies, to predict the memory
            self.process.clock = self.clock = copy.copy(self.clock)
            self.clock.module = self.parts["clock"]
        return self
