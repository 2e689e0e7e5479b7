"""Drawing images and their features from a trained model."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redi.core.channels import Channels
from redi.core.processes import Process, processes
from redi.core.registry import configurable
from redi.core.samplers import Draw, ImageNoise, Sampler, samplers
from redi.core.samplers.ancestral import Ancestral
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.guidance import Guidance, guidance_rules, guided, total_weights
from redi.models.codec import JointCodec
from redi.models.interface import choose_attention_of, state_of
from redi.runtime.device import Precision, choose_compile, choose_precision, compile_full_graph, matmul_precision
from redi.runtime.progress import progress
from redi.runtime.ranges import SEED, check_number
from redi.sampling.conditional import check_given, clamped, times_with_given
from redi.sampling.labels import label_numbers

log = logging.getLogger(__name__)


@dataclass(repr=False)
class Generated:
    """What `generate` drew, in the order of `labels`, on the CPU."""

    images: Tensor  # (N, 3, S, S) uint8
    x: Tensor  # (N, C, H, W) float32, the joint state: latents and generated features
    labels: Tensor  # (N,) int64
    record: dict  # seed, sampler, guidance, function evaluations, network evaluations per image
    trajectory: Tensor | None = None  # (K, N, C, H, W) float32: the joint states at `times`, where asked for
    times: list[float] | None = None  # K, of the first state and after every step

    def __repr__(self) -> str:
        tensors = {"images": self.images, "x": self.x, "labels": self.labels}
        kept = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if tensor is not None]
        return f"<Generated {', '.join(kept)}>"


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
    """Draws one image per label. Image i depends on (seed, first_index + i), its label and the weights alone.

    Args:
        labels: (N,) in [0, num_classes], or names of classes where the model came from a run that knows them.
        weights: parameters to use in place of the model's own (an EMA).
        given: {group: (N, C_m, H, W)}, the known parts of the joint state, as of `codec.channels.split(codec.encode(
            images))`: the others are drawn given these, by clamping (see `redi.sampling.conditional`).
        own_time: show the given groups clean, at a t of their own: for models trained with independent timesteps.
        draw: noise to use in place of `seed`'s, each entry (N, C, H, W): the initial noise, then what the sampler draws
            at its steps (an ODE sampler: nothing).
        trajectory: return the joint states at the start and after every step too: (steps + 1) N C H W float32 numbers
            on the CPU, and those of one batch on the device.
        sampler: default: as in the paper, 250 evaluations of EulerMaruyama, or Ancestral for a DDPM.
        guidance: rules, added up; none by default.
        precision: of the network, as in `train`; the sampler's own arithmetic is float32.
        compile: the network by torch.compile, on a GPU with CUDA graphs; 'auto': on a GPU. The last, smaller batch is
            filled up, so that there is one graph for every number of conditions.

    Raises:
        ValueError: a label outside the range, a rule that this model cannot follow, the wrong kind of object, noise of
            another shape or too little of it.
    """
    if sampler is None:
        sampler = Ancestral() if process.num_timesteps else EulerMaruyama()
    processes.check(process, "JointObjective.process")
    state = state_of(model)
    channels, null_label = state.channels, state.num_classes
    check_generation(sampler, process, guidance, channels, state.num_classes)
    labels = torch.as_tensor(label_numbers(labels, state.class_names, "generate: labels"))
    check_number("generate.batch_size", batch_size)
    check_number("generate.seed", seed, **SEED)
    if not labels.numel():
        raise ValueError("generate takes at least one label, got none")
    if labels.ndim != 1 or labels.is_floating_point():
        kind = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"generate: labels are a list of whole numbers or of names of classes, not {kind}")
    labels = labels.long()
    if not 0 <= labels.min() <= labels.max() <= null_label:
        classes = f"classes 0 ... {null_label - 1} (and {null_label}, the null label)"
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; this model has {classes}")
    if given:
        check_given(given, channels, (len(labels), *state.grid))
    shape = (channels.total, *state.grid)
    if draw is not None and (not len(draw) or any(tuple(noise.shape) != (len(labels), *shape) for noise in draw)):
        raise ValueError(f"generate: draw takes tensors of shape {(len(labels), *shape)}, the initial noise first")
    if trajectory and sampler.num_evaluations is None and len(labels) > batch_size:
        rule = f"{type(sampler).__name__} chooses its times for each batch, so a trajectory needs one batch"
        raise ValueError(f"generate.batch_size = {batch_size}: {rule}, of {len(labels)}")
    trained_with = getattr(model, "trained_with", None)
    for rule in guidance if trained_with and not first_index else ():  # images drawn in parts need it once
        if advice := rule.check_training(*trained_with):
            log.warning("%s", advice)
    device = next(model.parameters()).device
    how = choose_precision(precision, device, "generate.precision")
    compiled = choose_compile(compile, device, "generate.compile")
    process = process.for_channels(channels, device)
    if own_time and not getattr(model, "has_group_times", False):
        raise ValueError("own_time = True needs a model that takes each group's t (group_timesteps = True)")
    model_time = times_with_given(process, channels, given or ()) if own_time else process.model_time
    network = _Network(model, weights or {}, how, compiled)
    batch_size = min(batch_size, len(labels))
    images, states, paths, drawn = [], [], [], 0
    with torch.no_grad(), progress(total=len(labels), desc="sampling", unit="img") as bar:
        for start in range(0, len(labels), batch_size):
            count = min(batch_size, len(labels) - start)
            # Compiled for one batch size: what fills up the last batch is thrown away.
            rows = torch.arange(start, start + (batch_size if compiled else count)).clamp(max=len(labels) - 1)
            y = labels[rows].to(device)
            indices = (first_index + rows).tolist()
            noise = ImageNoise(seed, indices, shape, device) if draw is None else _replayed(draw, rows, device)
            denoise = guided(network, guidance, channels, y, null_label, model_time)
            known, path = {name: group[rows].to(device) for name, group in (given or {}).items()}, []
            denoise, noise, put = clamped(denoise, process, noise, channels, known, own_time=own_time)
            x = put(sampler(denoise, process, noise, **({"trajectory": path} if trajectory else {})))[:count]
            paths.append([(t, put(state, t)[:count].cpu()) for t, state in path])
            images.append(codec.decode(x).cpu())
            states.append(x.cpu())
            bar.update(count)
            drawn += len(rows)
    record = {
        "seed": seed if draw is None else None, "sampler": sampler.provenance(),
        "guidance": [rule.provenance() for rule in guidance], "given": sorted(given or ()), "precision": how.name,
        "function_evaluations": network.calls // len(states),
        "network_evaluations_per_image": network.evaluations / drawn,
    }  # fmt: skip
    generated = Generated(torch.cat(images), torch.cat(states), labels, record)
    if trajectory:
        generated.times = [t for t, _ in paths[0]]
        steps = zip(*paths, strict=True)
        generated.trajectory = torch.stack([torch.cat([state for _, state in batches]) for batches in steps])
    return generated


def _replayed(draw: Sequence[Tensor], rows: Tensor, device: torch.device) -> Draw:
    """The rows of one tensor after the other."""

    def replay() -> Iterator[Tensor]:
        for noise in draw:
            yield noise[rows.to(noise.device)].to(device, torch.float32)
        raise ValueError(f"generate: draw has {len(draw)} tensors, and the sampler draws more noise than that")

    return replay().__next__


def check_generation(
    sampler: Sampler | None, process: Process, guidance: Sequence[Guidance], channels: Channels, num_classes: int
) -> None:
    """Raises ValueError for the wrong kind of object, or a sampler or rule that such a model cannot follow."""
    if sampler is not None:
        samplers.check(sampler, "generate.sampler")
        sampler.check(process)
    if not isinstance(guidance, Sequence):
        raise ValueError("generate.guidance takes a list of rules: set, for example, [guidance.ClassifierFree()]")
    for rule in guidance:
        guidance_rules.check(rule, "generate.guidance")
        rule.check(channels, num_classes)
        try:
            total_weights([rule], channels, t=0.5)  # a scale that is no number shows now
        except TypeError as error:
            settings = ", ".join(f"{type(rule).__name__}.{name} = {value!r}" for name, value in vars(rule).items())
            raise ValueError(f"{settings}: one of these is of the wrong type ({error})") from error


class _Network:
    """The model with `weights`, in some precision, which counts evaluations; the caller's module stays as it is."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor], how: Precision, compiled: bool):
        taken = {id(p): weights.get(name, p) for name, p in model.named_parameters()}
        own = {key: nn.Parameter(tensor.detach(), requires_grad=False) for key, tensor in taken.items()}
        net = copy.deepcopy(model, own).eval()  # what is in `own` is taken, not copied
        device = next(net.parameters()).device
        choose_attention_of(net, device, how.dtype)
        self.how, self.graphs = how, compiled and device.type == "cuda"
        self.predict = compile_full_graph(net, "reduce-overhead" if self.graphs else None) if compiled else net
        self.calls = self.evaluations = 0  # one per function evaluation of a batch; of an image under a condition

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        self.evaluations += len(x)
        with matmul_precision(self.how.name), self.how.autocast(x.device):
            prediction = self.predict(x, t, y)
        return prediction.to(torch.float32, copy=self.graphs)  # a copy, for the next replay writes to the same memory
