"""Generate images and their features with a trained model."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from redi.core.channels import Channels
from redi.core.processes import Process, processes
from redi.core.processes.clocked import Clocked
from redi.core.registry import configurable
from redi.core.samplers import Draw, ImageNoise, Sampler, samplers
from redi.core.samplers.ancestral import Ancestral
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.guidance import Guidance, guidance_rules, guided, total_weights, training_advice
from redi.models.codec import JointCodec
from redi.models.interface import state_of
from redi.runtime.device import choose_compile, choose_precision
from redi.runtime.progress import progress
from redi.runtime.ranges import SEED, check_number
from redi.sampling.conditional import check_given, clamped, times_with_given
from redi.sampling.counted_network import CountedNetwork
from redi.sampling.labels import label_numbers
from redi.sampling.networks import open_networks
from redi.sampling.notebook import samples_shown
from redi.sampling.pictures import ColourBasis

log = logging.getLogger(__name__)


@dataclass(repr=False)
class Generated:
    """The samples of `generate`, in the order of `labels`, on the CPU.

    Examples:
        >>> Generated(torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2, 4, 8, 8), torch.tensor([0, 1]), {})
        <Generated images (2, 3, 8, 8), x (2, 4, 8, 8), labels (2,)>
    """

    images: Tensor  # (N, 3, S, S) uint8
    x: Tensor  # (N, C, H, W) float32, the joint state: latents and generated features
    labels: Tensor  # (N,) int64
    record: dict  # seed, sampler, guidance, function evaluations, network evaluations per image
    trajectory: Tensor | None = None  # (K, N, C, H, W) float32, the joint states at `times`, if requested
    times: list[float] | None = None  # K times: the start, and the end of every step
    channels: Channels | None = None  # these three from `Run.generate`, for the picture in Jupyter
    colours: ColourBasis | None = None
    class_names: Sequence[str] | None = None
    _repr_html_ = samples_shown

    def __repr__(self) -> str:
        tensors = {"images": self.images, "x": self.x, "labels": self.labels}
        shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if tensor is not None]
        return f"<Generated {', '.join(shapes)}>"


RUNTIME = "model", "codec", "process", "labels", "weights", "first_index", "given", "own_time", "draw", "trajectory"


@configurable(runtime=RUNTIME)
def generate(
    model: nn.Module, codec: JointCodec, process: Process, *, labels: Sequence[int | str] | Tensor,
    weights: Mapping[str, Tensor] | None = None, first_index: int = 0, given: Mapping[str, Tensor] | None = None,
    own_time: bool = False, draw: Sequence[Tensor] | Tensor | None = None, trajectory: bool = False,
    sampler: Sampler | None = None,
    guidance: Sequence[Guidance] = (),
    batch_size: int = 250,
    precision: str = "auto",
    compile: str | bool = "auto",
    seed: int = 0,
) -> Generated:  # fmt: skip
    """Generate one image per label. Image i depends only on (seed, first_index + i), its label and the weights.

    Args:
        labels: class numbers (N,) in [0, num_classes], where num_classes is the null label. If the model comes from a
            run with class names, these are accepted too.
        weights: parameters to use instead of those of the model, such as an EMA.
        first_index: index of the first image, for generating a set in parts.
        given: {group: (N, C_m, H, W)}, known groups of the joint state, for example from `codec.channels.split(
            codec.encode(images))`; a vector may be (N, length). The others are sampled (`redi.sampling.conditional`).
        own_time: pass the given groups clean, at t = 1, to a model trained with clocks.Independent.
        draw: noise to use instead of that of `seed`, each entry (N, C, H, W): the initial noise, then the noise of the
            steps of an SDE sampler.
        trajectory: also return the joint states at the start and after every step: steps + 1 times the memory of x.
        sampler: default, as in the paper: EulerMaruyama with 250 evaluations, or Ancestral for DDPM.
        guidance: guidance rules, whose effects are added. Default: none.
        precision: precision of the network, as in `train`. The sampler computes in float32.
        compile: whether to compile the network by torch.compile, on a GPU with CUDA graphs. 'auto': only on a GPU. The
            last batch is padded to the full size, so that one graph per number of conditions is enough.

    Raises ValueError for a label outside the range, a rule or sampler that does not support the model, an object of the
    wrong kind, or noise of another shape or in too few entries.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> from redi.core.samplers import Euler
        >>> from redi.models.transformer import DiffusionTransformer
        >>> codec = JointCodec()  # pixels, without a representation
        >>> shape = {"channels": codec.channels, "grid": codec.grid(8), "num_classes": 10}
        >>> model = DiffusionTransformer(**shape, patch_size=2, width=16, depth=1, num_heads=2)
        >>> drawn = generate(model, codec, FlowMatching(), labels=[0, 3, 7], sampler=Euler(num_evaluations=4))
        >>> drawn.images.shape, drawn.record["network_evaluations_per_image"]
        (torch.Size([3, 3, 8, 8]), 4.0)
    """
    if sampler is None:
        sampler = Ancestral() if process.num_timesteps else EulerMaruyama()
    processes.check(process, "JointObjective.process")
    state = state_of(model)
    channels, null_label = state.channels, state.num_classes
    check_generation(sampler, process, guidance, model)
    labels = torch.as_tensor(label_numbers(labels, state.class_names, "generate: labels"))
    check_number("generate.batch_size", batch_size)
    check_number("generate.seed", seed, SEED["least"], below=SEED["below"])
    if not labels.numel():
        raise ValueError("generate: labels = []: must hold at least one label")
    if labels.ndim != 1 or labels.is_floating_point():
        kind = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"generate: labels are {kind}: must be a list of class numbers or class names")
    labels = labels.long()
    if not 0 <= labels.min() <= labels.max() <= null_label:
        allowed = f"must be in 0 ... {null_label - 1}, or {null_label} for the null label"
        raise ValueError(f"generate: labels range from {labels.min()} to {labels.max()}: {allowed}")
    given = check_given(given or {}, channels, (len(labels), *state.grid))
    shape = (channels.total, *state.grid)
    if draw is not None and (not len(draw) or any(tuple(noise.shape) != (len(labels), *shape) for noise in draw)):
        raise ValueError(f"generate: draw must be tensors of shape {(len(labels), *shape)}, the initial noise first")
    if trajectory and sampler.num_evaluations is None and len(labels) > batch_size:
        why = f"{type(sampler).__name__} chooses its times for each batch, so a trajectory needs a single batch"
        raise ValueError(f"generate.batch_size = {batch_size}: {why}; set it to {len(labels)}")
    if (trained_with := getattr(model, "trained_with", None)) and not first_index:  # once for a set generated in parts
        for advice in training_advice(guidance, trained_with):
            log.warning("%s", advice)
    guidance, others = open_networks(guidance, model, codec, process)
    device = next(model.parameters()).device
    how = choose_precision(precision, device, "generate.precision")
    compiled = choose_compile(compile, device, "generate.compile")
    process = process.for_channels(channels, device)
    every_network = [model, *(other for other, _ in others.values())]
    reads_times = all(getattr(network, "has_group_times", False) for network in every_network)
    if own_time and (type(process) is Clocked or not reads_times):
        # A model with another clock has seen clean groups beside noisy ones only where its clock shows them.
        clock = type(process.clock).__name__ if isinstance(process, Clocked) else "one t for all groups"
        raise ValueError(f"own_time = True with a model of {clock}: must be False, or train with clocks.Independent")
    model_time = times_with_given(process, channels, given) if own_time else process.model_time
    networks = {"self": CountedNetwork(model, weights or {}, how, compiled, device)}
    networks |= {name: CountedNetwork(other, {}, how, compiled, device) for name, (other, _) in others.items()}
    times: list[float] = []  # one per function evaluation

    def group_times(t: float) -> Mapping[str, float]:
        times.append(t)
        return process.group_times(channels, t)

    batch_size = min(batch_size, len(labels))
    images, states, paths, num_drawn = [], [], [], 0
    with torch.no_grad(), progress(total=len(labels), desc="sampling", unit="img") as bar:
        for start in range(0, len(labels), batch_size):
            count = min(batch_size, len(labels) - start)
            # A compiled network has one batch size: the last batch is padded, and the padding is discarded.
            rows = torch.arange(start, start + (batch_size if compiled else count)).clamp(max=len(labels) - 1)
            y = labels[rows].to(device)
            indices = (first_index + rows).tolist()
            noise: Draw = ImageNoise(seed, indices, shape, device) if draw is None else _replayed(draw, rows, device)
            noise = partial(lambda draw: channels.trim(draw()), noise)  # the padding of vectors stays 0 in all states
            denoise = guided(networks, guidance, channels, y, null_label, model_time, group_times)
            known = {name: group[rows].to(device) for name, group in given.items()}
            path: list[tuple[float, Tensor]] = []
            denoise, noise, insert = clamped(denoise, process, noise, channels, known, own_time=own_time)
            recording: dict[str, Any] = {"trajectory": path} if trajectory else {}
            x = insert(sampler(denoise, process, noise, **recording))[:count]
            paths.append([(t, insert(state, t)[:count].cpu()) for t, state in path])
            images.append(codec.decode(x).cpu())
            states.append(x.cpu())
            bar.update(count)
            num_drawn += len(rows)
    record = {
        "seed": seed if draw is None else None, "sampler": sampler.provenance(),
        "guidance": [rule.provenance() for rule in guidance], "given": sorted(given), "precision": how.name,
        "function_evaluations": len(times) // len(states),
        "network_evaluations_per_image": sum(network.evaluations for network in networks.values()) / num_drawn,
    }  # fmt: skip
    if len(networks) > 1:
        counts = {name: network.evaluations / num_drawn for name, network in networks.items()}
        record |= {"evaluations_by_network": counts, "networks": {name: one for name, (_, one) in others.items()}}
    generated = Generated(torch.cat(images), torch.cat(states), labels, record)
    if trajectory:
        generated.times = [t for t, _ in paths[0]]
        steps = zip(*paths, strict=True)
        generated.trajectory = torch.stack([torch.cat([state for _, state in batches]) for batches in steps])
    return generated


def _replayed(draw: Sequence[Tensor] | Tensor, rows: Tensor, device: torch.device) -> Draw:
    """Return a source of noise: call k returns these rows of draw[k]."""

    def replay() -> Iterator[Tensor]:
        for noise in draw:
            yield noise[rows.to(noise.device)].to(device, torch.float32)
        raise ValueError(f"generate: draw has {len(draw)} tensors, but the sampler needs more: add one per noisy step")

    return replay().__next__


def check_generation(sampler: Sampler | None, process: Process, guidance: Sequence[Guidance], model: nn.Module) -> None:
    """Raise ValueError for an object of the wrong kind, or a sampler or rule that does not support the model."""
    channels, _, num_classes, _ = state_of(model)
    if sampler is not None:
        samplers.check(sampler, "generate.sampler")
        sampler.check(process.for_channels(channels))
        if sampler.num_evaluations is None and getattr(model, "feature_shape", None):
            what = (
                f"generate.sampler = {type(sampler).__name__} repeats steps, but the predicted features of this model"
            )
            raise ValueError(f"{what} go from step to step: use a sampler with fixed steps, such as samplers.Euler()")
    if not isinstance(guidance, Sequence):
        raise ValueError(f"generate.guidance = {guidance!r}: must be a list, for example [guidance.ClassifierFree()]")
    for rule in guidance:
        guidance_rules.check(rule, "generate.guidance")
        rule.check(channels, num_classes)
        if rule.uses_inner and getattr(model, "inner_layer", None) is None:
            what = f"{type(rule).__name__} needs an inner prediction, which this model does not have"
            raise ValueError(f"{what}: train with JointObjective.inner_layer, or remove it from generate.guidance")
        try:
            total_weights([rule], channels, t=0.5)  # raises TypeError if the scale is not a number
        except TypeError as error:
            settings = ", ".join(f"{type(rule).__name__}.{name} = {value!r}" for name, value in vars(rule).items())
            hint = "one of these values has the wrong type, or weight_offsets uses t as a number: it is {group: own t}"
            raise ValueError(f"{settings}: {hint} ({error})") from error
