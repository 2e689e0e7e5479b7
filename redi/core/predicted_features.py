"""Features that the network predicts and receives back as a condition, instead of denoising them (DINO Forcing)."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from redi.core.alignment import Alignment, Features, target_tokens
from redi.core.channels import Channels
from redi.core.registry import configurable
from redi.runtime.randomness import Rows
from redi.runtime.ranges import check_number

ABSENT, TRUE, PREDICTED = range(3)  # the source of a sample's condition


@configurable
class PredictedFeatures:
    """Training with two passes: the features predicted by the first are the condition of the second (DINO Forcing).

    The first pass has no condition and no gradient, and modules are in eval mode. It gives the prediction of the
    network's own head, `JointCodec.alignment`. The losses are those of the second pass. Only the image is diffused.

    The facts are those of DINO Forcing: 5 % true, 10 % absent, a head after the last block, a negative cosine of weight
    0.5. That one draw per sample decides first whether the condition is absent is our reading, as are the separate
    initialisations of the patch embedding and the embedding of the condition.

    Args:
        true_share: probability per sample that the condition is the encoder's features instead of the prediction. Its
            paper: FID 3.32 at 0.1, 3.53 at 0.2 and 6.81 at 0.5 (SiT-L).
        absent_share: probability per sample that the condition is 0, whatever its source.

    Examples:
        >>> PredictedFeatures(absent_share=1.0).draw(Rows.whole(3), "cpu").tolist()
        [0, 0, 0]
    """

    def __init__(self, *, true_share: float = 0.05, absent_share: float = 0.1):
        for name, share in {"true_share": true_share, "absent_share": absent_share}.items():
            check_number(f"PredictedFeatures.{name}", share, least=0, whole=False)
            if share > 1:
                raise ValueError(f"PredictedFeatures.{name} = {share}: must be in [0, 1], a share of the samples")
        self.true_share, self.absent_share = true_share, absent_share

    def draw(self, rows: Rows, device: torch.device | str) -> Tensor:
        """Draw the source of every sample's condition for the whole batch; return those of `rows`, (n,)."""
        true, absent = torch.rand(2, rows.total, device=device)
        sources = torch.where(true < self.true_share, TRUE, PREDICTED)
        return rows.of(sources.where(absent >= self.absent_share, ABSENT))

    def condition(
        self, model: Callable[..., Any], inputs: tuple[Tensor, ...], features: Features | None, sources: Tensor | None,
        normalisation: float | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the condition of the second pass, (N, P, E), without a gradient.

        Args:
            inputs: x_t, model time and labels of the pass.
            features: of the encoder, (N, E, h, w), prepared as REPA's targets.
            sources: (N,), see `draw`. Default: predictions for all samples.
        """
        if features is None:
            what = "JointObjective.predicted_features needs the features of the encoder in every step"
            raise ValueError(f"{what}: pass `alignment`, and bind JointCodec.alignment")
        features = features["alignment"] if isinstance(features, Mapping) else features
        with torch.no_grad(), evaluating(model):
            predicted = model(*inputs, align=True)[-1]
        if features.shape[1] != predicted.shape[2]:
            what = f"JointCodec.alignment gives features of width {features.shape[1]}, but the network predicts"
            raise ValueError(f"{what} {predicted.shape[2]}: must be equal; bind the encoder that it was built for")
        if sources is None:
            return predicted
        sources = sources[:, None, None]
        true = target_tokens(features.float(), predicted.shape[1], normalisation).to(predicted)
        return torch.where(sources == TRUE, true, predicted).where(sources != ABSENT, 0.0)

    def check(self, channels: Channels, alignment: Alignment, widths: Mapping[str, int]) -> None:
        """Raise ValueError for a codec, {name of the features: E}, or other settings of the objective that do not fit.

        Features cannot be both predicted and diffused, because then a condition would leak what has to be denoised.
        """
        what = "JointObjective.predicted_features"
        if not widths:
            raise ValueError(f"{what}: the network has no head to predict features with; bind JointCodec.alignment")
        if len(widths) > 1:
            names = ", ".join(widths)
            raise ValueError(f"{what}: JointCodec.alignment has several encoders ({names}); must be one")
        if names := ", ".join(channels.representations):
            advice = "only the image is diffused; bind JointCodec.representations = []"
            raise ValueError(f"{what}: {names} in the joint state are diffused: {advice}")
        if alignment.end_step is not None or not alignment.weight:
            setting = "end_step" if alignment.weight else "weight"
            value = getattr(alignment, setting)
            advice = "the head learns from this term; set None" if alignment.weight else "must be greater than 0"
            raise ValueError(f"JointObjective.alignment_{setting} = {value} with predicted_features: {advice}")


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Put the modules of a model in eval mode, and back in their modes at the end."""
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class CarriedFeatures:
    """The predicted features of each network and condition, carried from one evaluation of a sampler to the next.

    Every evaluation receives the prediction of the last one of the same network and condition, and 0 if there is none.
    Outside the interval of a guidance rule its conditions are not evaluated, and their features stay as they are.

    Examples:
        A network without `feature_shape` is called as before.

        >>> carried = CarriedFeatures()
        >>> carried.arguments(lambda x, t, y: x, "self", ["label", "null"], torch.zeros(2, 4, 8, 8))
        {}
    """

    def __init__(self):
        self.latest: dict[tuple[str, Hashable], Tensor] = {}  # (N, P, E)

    def arguments(self, network: object, name: str, conditions: Sequence[Hashable], x: Tensor) -> dict[str, Any]:
        """Return the arguments of a network for K conditions in one batch: {} or features (K N, P, E) and align."""
        if (shape := getattr(network, "feature_shape", None)) is None:
            return {}
        zeros = x.new_zeros(len(x), *shape)
        return {"features": torch.cat([self.latest.get((name, one), zeros) for one in conditions]), "align": True}

    def keep(self, name: str, conditions: Sequence[Hashable], features: Tensor) -> None:
        """Keep the features (K N, P, E) that a network predicts for K conditions."""
        for condition, part in zip(conditions, features.chunk(len(conditions)), strict=True):
            self.latest[name, condition] = part.detach()
