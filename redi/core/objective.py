"""The joint objective: one corrupted state, one prediction, one error per channel group."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.processes import Process, processes
from redi.core.processes.flow_matching import FlowMatching
from redi.core.registry import configurable


@configurable(runtime=("channels", "num_classes"))
class JointObjective:
    """L = mean |error_image|^2 + sum over representations of lambda_m mean |error_m|^2 (paper, Eq. 6).

    The mean is taken within each group, so lambda does not depend on the number of channels. Timestep t is
    shared by all groups and uniform in [0, 1].

    Args:
        process: how x is corrupted and what is predicted.
        representation_weight: lambda, one number for all representations or {name: lambda}.
        label_dropout: probability of the null label, for classifier-free guidance.
        representation_dropout: probability, per sample, that all *noised* representations are zeroed and their
            loss with them (paper, section 3.5: p_drop = 0.2); needed for Representation Guidance.
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
    ):
        self.process = FlowMatching() if process is None else process
        processes.check(self.process, "JointObjective.process")
        for name, value in (("label_dropout", label_dropout), ("representation_dropout", representation_dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"JointObjective.{name} = {value} lies outside [0, 1)")
        if not isinstance(representation_weight, Mapping):
            representation_weight = dict.fromkeys(channels.representations, representation_weight)
        if set(representation_weight) != set(channels.representations):
            raise ValueError(
                f"JointObjective.representation_weight names {sorted(representation_weight)}, "
                f"the codec has {sorted(channels.representations)}"
            )
        self.channels = channels
        self.null_label = num_classes
        self.weights = dict(representation_weight)
        self.label_dropout = label_dropout
        self.representation_dropout = representation_dropout

    def __call__(self, model: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Clean states (N, C, H, W) and labels (N,) -> {"loss": (), "image": (), "<representation>": ()}.

        Only "loss" carries a gradient that matters; the others are the mean squared errors, over the samples
        that kept their representation. Draws from torch's default generator.
        """
        n = len(x)
        t = torch.rand(n, device=x.device)
        noise = torch.randn_like(x)
        dropped = torch.rand(n, device=x.device) < self.representation_dropout
        y = torch.where(torch.rand(n, device=x.device) < self.label_dropout, self.null_label, y)

        x_t, target = self.process.corrupt(x, noise, t[:, None, None, None])
        x_t = self.channels.mask(x_t, dropped)
        squared = (model(x_t, t, y).float() - target).square()
        errors = {name: part.mean(dim=(1, 2, 3)) for name, part in self.channels.split(squared).items()}  # each (N,)

        kept = (~dropped).float()
        losses = {"image": errors["image"].mean()}
        loss = losses["image"]
        for name, weight in self.weights.items():
            loss = loss + weight * (errors[name] * kept).mean()
            losses[name] = (errors[name] * kept).sum() / kept.sum().clamp(min=1)
        return {"loss": loss, **losses}
