"""Check the configuration of training, sampling and evaluation before anything expensive starts."""

import inspect
import logging
import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import nn

from redi.core import config
from redi.core.objective import JointObjective
from redi.core.processes import Process
from redi.core.processes.shifted import Shifted
from redi.data.datasets import Dataset
from redi.data.loader import check_shuffle
from redi.evaluation.checking import check_evaluation
from redi.evaluation.evaluate import evaluate
from redi.evaluation.samples.sample import check_sampling, sample
from redi.evaluation.stored_statistics import StoredStatistics
from redi.guidance import Guidance, training_advice
from redi.models.codec import JointCodec
from redi.models.encoders import Encoder
from redi.models.interface import build_model, choose_attention_of
from redi.models.transformer import DiffusionTransformer
from redi.runs.load import Run
from redi.runtime.checkpoint import check_best
from redi.runtime.device import choose_compile, choose_device, choose_precision
from redi.runtime.distributed import Processes, process_rank
from redi.runtime.paths import local_path
from redi.runtime.ranges import SEED, check_number
from redi.sampling.generate import check_generation, generate
from redi.sampling.networks import open_networks
from redi.training.guards import NUMBERS, check_settings
from redi.training.memory import check_memory
from redi.training.optimizers import make_optimizer
from redi.training.parallel.ddp import DDP
from redi.training.trainer import train
from redi.training.warm_start import warm_start

log = logging.getLogger("redi")


def check_settings_of_training() -> None:
    """Raise ValueError for settings of `train` that are invalid whatever the data."""
    with config.explained(types=True):
        check_settings({name: setting(train, name) for name in (*NUMBERS, "on_log", "schedule")})
        check_shuffle(setting(train, "shuffle"))
        Processes(*process_rank()).check(setting(train, "batch_size"), setting(train, "accumulate"))
        device = choose_device(setting(train, "device"))
        choose_precision(setting(train, "precision"), device)
        choose_compile(setting(train, "compile"), device)


def check_training(
    codec: JointCodec, dataset: Dataset, *, monitor=None, resumes: bool = False, trains: bool = False
) -> nn.Module:
    """Build on the meta device everything that `train` builds; return the model.

    Args:
        monitor: the monitor of the run.
        resumes: whether training resumes from a checkpoint and ignores `train.initial_weights`.
        trains: whether to check that a step fits into the memory of this machine.

    Raises ValueError: as `train` and its previews would.
    """
    check_settings_of_training()
    with config.explained(types=True):
        if (best := setting(train, "keep_best")) is not None:
            check_best(best, monitor)
        device = choose_device(setting(train, "device"))
        precision = choose_precision(setting(train, "precision"), device)
        compiled = choose_compile(setting(train, "compile"), device)
        codec.for_image_size(dataset.image_size)
        objective = setting(train, "objective")(channels=codec.channels, num_classes=dataset.num_classes)
        objective.with_parts_of(codec)
        model_arguments = objective.model_arguments(codec, dataset)
        with torch.device("meta"):
            net = objective.attach(build_model(setting(train, "model"), model_arguments))
            make_optimizer(setting(train, "optimizer"), net)
            setting(train, "ema")(model=net)
        objective.check_model(net)
        parallel = setting(train, "parallel") or DDP()
        parallel.check(objective)
        _warn_of_former_names(objective, net)
        if not resumes and (initial := setting(train, "initial_weights")) is not None:
            warm_start(net, initial)
            if local_path(initial).is_file():
                check_label_order(dataset.class_names or [])
        choose_attention_of(net, device, precision.dtype)
        rules = _check_generate(objective.process, net, device)
        if trains and setting(train, "check_memory"):
            settings = {name: setting(train, name) for name in ("batch_size", "accumulate", "optimizer", "ema")}
            check_memory(
                setting(train, "model"), model_arguments, objective, device=device, compiled=compiled,
                processes=Processes(*process_rank()), parallel=parallel, precision=precision, **settings,
            )  # fmt: skip
    length, num_steps = getattr(setting(train, "schedule"), "num_steps", None), setting(train, "num_steps")
    if length not in (None, num_steps):
        effect = "later steps keep its last factor" if length < num_steps else "training ends before it does"
        log.warning("train.schedule has %d steps, but train.num_steps = %d: %s", length, num_steps, effect)
    for advice in training_advice(rules, objective.trained_with):
        log.warning("%s", advice)
    if isinstance(net, DiffusionTransformer):
        channels, width = codec.channels, net.blocks[-1].width  # of the wide head, if there is one
        num_values = sum(channels[name] for name in channels.maps) * math.prod(net.grid)
        of_maps = "each token", "channels x patch size squared, features resized to the latent grid"
        packed = {of_maps: num_values // (net.fusion.num_tokens - len(channels.vectors))}
        packed |= {(name, "a vector"): length for name, length in channels.vectors.items()}
        for (what, note), number in packed.items():
            if number > width:
                log.warning(
                    "%s packs %d values (%s) into a width of %d, so noise is lost and image quality drops: lower the "
                    "reducer's rank or the patch size, or raise DiffusionTransformer.width (or head_width)",
                    what, number, note, width,
                )  # fmt: skip
    names = [f"JointObjective.alignment_{name}" for name in ("weight", "end_step", "normalisation", "loss", "vectors")]
    names += [f"DiffusionTransformer.alignment_{name}" for name in ("layer", "projector", "width")]
    unused = [name for name in names if config.is_bound(name)]
    if not codec.alignments and unused:
        log.warning("unused bindings: %s need JointCodec.alignment, which is not bound (repa.gin)", ", ".join(unused))
    elif names[-1] in unused and config.bound(names[-2], "mlp") == "conv":
        log.warning("unused binding: %s belongs to the MLP, but %s = 'conv'", names[-1], names[-2])
    return net


def _warn_of_former_names(objective: JointObjective, net: nn.Module) -> None:
    """Warn of bindings that `JointObjective.clock` replaces or overrides."""
    message = "%s works until the next minor version: in new runs, bind JointObjective.clock = @clocks.%s()"
    if config.bound("JointObjective.independent_timesteps"):
        log.warning(message, "JointObjective.independent_timesteps", "Independent")
    if isinstance(objective.process, Shifted):
        log.warning(message, "processes.Shifted", "Shift")
    name, has_times = "DiffusionTransformer.group_timesteps", getattr(net, "has_group_times", False)
    if has_times and config.bound(name) is False:
        log.warning("%s = False has no effect, because JointObjective.clock gives the groups different times", name)
    if not has_times and config.is_bound("DiffusionTransformer.group_times_by"):
        log.warning("unused binding: DiffusionTransformer.group_times_by needs a JointObjective.clock with group times")


def check_sample_settings(run: Run) -> None:
    """Raise ValueError for settings that `sample` would refuse for this run."""
    with config.explained(types=True):
        _check_sample(run)
        rules = _check_generate(run.process, run.model, run.codec.device)
        open_networks(rules, run.model, run.codec, run.process)


def _check_sample(classes: Run | Dataset) -> dict:
    """Check the settings of `sample`; return them."""
    names = set(inspect.signature(check_sampling).parameters) - {"num_classes", "class_names"}
    settings = {name: setting(sample, name) for name in names}
    check_sampling(**settings, num_classes=classes.num_classes, class_names=classes.class_names)
    return settings


def _check_generate(process: Process, model: nn.Module, device: torch.device) -> Sequence[Guidance]:
    """Check the settings of `generate`; return its guidance rules."""
    check_number("generate.batch_size", setting(generate, "batch_size"))
    check_number("generate.seed", setting(generate, "seed"), **SEED)
    choose_precision(setting(generate, "precision"), device, "generate.precision")
    choose_compile(setting(generate, "compile"), device, "generate.compile")
    rules = setting(generate, "guidance")
    check_generation(setting(generate, "sampler"), process, rules, model)
    return rules


def check_label_order(class_names: Sequence[str]) -> None:
    """Log how the labels of published ImageNet weights map to the data set; warn if the class order is unknown."""
    if len(class_names) != 1000:
        return
    synsets = all(re.fullmatch(r"n\d{8}", name) for name in class_names) and list(class_names) == sorted(class_names)
    if synsets or list(class_names) == [str(label) for label in range(1000)]:
        log.info("labels follow ImageNet's order: 0 = %r ... 999 = %r", class_names[0], class_names[-1])
    else:
        log.warning(
            "published ImageNet weights expect labels in the order of the synsets (0 = n01440764), and the class names "
            "of the data set (0 = %r ... 999 = %r) do not show it: name the class folders by synset or number",
            class_names[0], class_names[-1],
        )  # fmt: skip


def check_results(
    codec: JointCodec, dataset: Dataset, *, reference: Dataset | StoredStatistics | None,
    networks: Sequence[Encoder] | None,
) -> None:  # fmt: skip
    """Check the settings of sampling and evaluation. Raises ValueError: as `sample` and `evaluate` would."""
    with config.explained(types=True):
        settings = _check_sample(dataset)
        rest = {name: setting(evaluate, name) for name in ("metrics", "max_images")}
        check_evaluation(dataset, reference, networks, **rest)
    for network in networks or ():
        for representation in codec.representations.values():
            check_independent(network, representation.encoder)
    for network in (*(networks or ()), *settings["networks"]):
        if not network.learns_from_data:
            network.load()  # fails on missing weights now, not after hours of training


def warn_of_unused_generate() -> None:
    """Warn if bindings of `generate` do not reach the function that draws the samples."""
    text, drawing = config.full_text(), config.unevaluated("sample.generate")
    reached = config.relevant(text, ["sample.generate"])
    if unused := [k for k in config.relevant(text, [generate]) if k.startswith("generate.") and k not in reached]:
        log.warning(
            "%s: no effect on the samples, because sample.generate = %s does not use generate. To apply these "
            "bindings, give that function an argument and bind @generate to it (docs/plug-ins.md)",
            ", ".join(unused), drawing,
        )  # fmt: skip


def check_independent(network: Encoder, encoder: Encoder) -> None:
    """Raise ValueError if a metric network is the encoder whose features are generated."""
    if type(network) is not type(encoder):
        return
    if network.learns_from_data:
        same = network.fit_settings() == encoder.fit_settings()
        remedy = "bind another width, depth or seed in its own scope, as gin/evaluator.gin does"
    else:
        same = network.provenance() == encoder.provenance()
        remedy = "bind another model in its own scope; a generator can overfit to the network that it was trained with"
    if same:
        raise ValueError(
            f"evaluate.networks contains the {type(encoder).__name__} whose features are generated (equal settings, so "
            f"equal weights): {remedy}"
        )


def setting(function: Callable, name: str):
    """Return the binding of an argument of a configurable function, or its default."""
    return config.bound(f"{function.__name__}.{name}", inspect.signature(function).parameters[name].default)
