"""Drawing images and their features from a trained model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from redi.core.channels import Channels
from redi.core.clamping import check_given, clamped, times_with_given
from redi.core.codec import JointCodec
from redi.core.device import choose_precision
from redi.core.processes import Process, processes
from redi.core.progress import progress
from redi.core.registry import configurable
from redi.core.samplers import ImageNoise, Sampler, samplers
from redi.core.samplers.ancestral import Ancestral
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.guidance import Guidance, guidance_rules, guided, total_weights
from redi.models.transformer import DiffusionTransformer

log = logging.getLogger(__name__)


@dataclass
class Generated:
    """What `generate` drew, in the order of `labels`, on the CPU."""

    images: Tensor  # (N, 3, S, S) uint8
    x: Tensor  # (N, C, H, W) float32, the joint state: latents and generated features
    labels: Tensor  # (N,) int64
    record: dict  # seed, sampler, guidance, number of function evaluations (per image), network evaluations


@configurable(runtime=("model", "codec", "process", "labels", "weights", "first_index", "given", "own_time"))
def generate(
    model: DiffusionTransformer,
    codec: JointCodec,
    process: Process,
    *,
    labels: Sequence[int] | Tensor,
    weights: Mapping[str, Tensor] | None = None,
    first_index: int = 0,
    given: Mapping[str, Tensor] | None = None,
    own_time: bool = False,
    sampler: Sampler | None = None,
    guidance: Sequence[Guidance] = (),
    batch_size: int = 250,
    precision: str = "auto",
    seed: int = 0,
) -> Generated:
    """Draws one image per label.

    Image i depends on (seed, first_index + i), its label and the weights alone: not on the batch size, the
    number of images or the device's random generator.

    Args:
        labels: (N,) in [0, num_classes].
        weights: parameters to use in place of the model's own (an EMA).
        given: {group: (N, C_m, H, W)}, parts of the joint state that are known: the others are drawn given these, by
            clamping (see `redi.core.clamping`). An image's own, say, as `codec.channels.split(codec.encode(images))`.
        own_time: show what is given clean, at a t of its own: for models trained with independent timesteps.
        sampler: default: as in the paper, 250 evaluations of EulerMaruyama, or Ancestral for a DDPM.
        guidance: rules, added up; none by default.
        precision: of the network, as in `train`; the sampler's own arithmetic is float32.

    Raises:
        ValueError: a label outside the range, a rule that this model cannot follow, the wrong kind of object.
    """
    if sampler is None:
        sampler = Ancestral() if process.num_timesteps else EulerMaruyama()
    processes.check(process, "JointObjective.process")
    check_generation(sampler, process, guidance, model.channels, model.num_classes)
    labels = torch.as_tensor(labels, dtype=torch.int64)
    if batch_size < 1 or not len(labels):
        raise ValueError(f"generate takes at least one label and batch_size >= 1, got {len(labels)} and {batch_size}")
    if not 0 <= labels.min() <= labels.max() <= model.null_label:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}; this model has classes 0 ... {model.num_classes - 1} "
            f"(and {model.null_label}, the null label)"
        )
    if given:
        check_given(given, model.channels, (len(labels), *model.grid))
    trained_with = getattr(model, "trained_with", None)
    for rule in guidance if trained_with else ():
        if advice := rule.check_training(*trained_with):
            log.warning("%s", advice)
    device = next(model.parameters()).device
    dtype = choose_precision(precision, device, "generate.precision")
    process = process.for_channels(model.channels, device)
    if own_time and not model.has_group_times:
        raise ValueError("own_time = True needs a model that is told every group's t (group_timesteps = True)")
    network_time = times_with_given(process, model.channels, given or ()) if own_time else process.network_time
    network = _Counted(model, weights, dtype)
    training, attention = model.training, model.attention_for
    images, states = [], []
    try:
        model.eval()
        model.choose_attention(device, dtype)
        with torch.no_grad(), progress(total=len(labels), desc="sampling", unit="img") as bar:
            for start in range(0, len(labels), batch_size):
                y = labels[start : start + batch_size].to(device)
                indices = range(first_index + start, first_index + start + len(y))
                draw = ImageNoise(seed, indices, (model.channels.total, *model.grid), device)
                denoise = guided(network, guidance, model.channels, y, model.null_label, network_time)
                known = {name: group[start : start + len(y)].to(device) for name, group in (given or {}).items()}
                denoise, draw, finish = clamped(denoise, process, draw, model.channels, known, own_time=own_time)
                x = finish(sampler(denoise, process, draw))
                images.append(codec.decode(x).cpu())
                states.append(x.cpu())
                bar.update(len(y))
    finally:
        model.train(training)
        if attention is not None:
            model.choose_attention(*attention)
    record = {
        "seed": seed,
        "sampler": sampler.provenance(),
        "guidance": [rule.provenance() for rule in guidance],
        "given": sorted(given or ()),
        "precision": str(dtype).removeprefix("torch."),
        "function_evaluations": network.calls // len(states),
        "network_evaluations_per_image": network.evaluations / len(labels),
    }
    return Generated(torch.cat(images), torch.cat(states), labels, record)


def check_generation(
    sampler: Sampler | None, process: Process, guidance: Sequence[Guidance], channels: Channels, num_classes: int
) -> None:
    """Raises ValueError for the wrong kind of object, a sampler that cannot follow the process, or a rule that a model
    of such channels cannot follow."""
    if sampler is not None:
        samplers.check(sampler, "generate.sampler")
        sampler.check(process)
    if not isinstance(guidance, Sequence):
        raise ValueError("generate.guidance takes a list of rules: bind, for example, [@guidance.ClassifierFree()]")
    for rule in guidance:
        guidance_rules.check(rule, "generate.guidance")
        rule.check(channels, num_classes)
        try:
            total_weights([rule], channels, t=0.5)  # a scale that is no number shows now
        except TypeError as error:
            settings = ", ".join(f"{type(rule).__name__}.{name} = {value!r}" for name, value in vars(rule).items())
            raise ValueError(f"{settings}: one of these is of the wrong type ({error})") from error


class _Counted:
    """The network with other weights where given and in some precision, counting what it is asked."""

    def __init__(self, model: DiffusionTransformer, weights: Mapping[str, Tensor] | None, dtype: torch.dtype):
        self.model, self.weights, self.dtype = model, weights, dtype
        self.calls = 0  # one per batch and function evaluation
        self.evaluations = 0  # one per image, condition and function evaluation

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        self.evaluations += len(x)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if self.weights is None:
                return self.model(x, t, y).float()
            return functional_call(self.model, dict(self.weights), (x, t, y)).float()
