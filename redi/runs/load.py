"""Open a trained run folder."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redi.core import config
from redi.core.channels import Channels
from redi.core.configurables import import_all
from redi.core.objective import JointObjective
from redi.core.parts import without_parts
from redi.core.plug_ins import warn_of_edits
from redi.core.processes import Process
from redi.core.registry import entry_points
from redi.data.audit import class_names
from redi.data.preprocessing import open_image
from redi.fusion.merged import with_one_bias
from redi.models.codec import JointCodec
from redi.models.interface import build_model, state_of
from redi.models.transformer import DiffusionTransformer
from redi.runtime import trusted_imports
from redi.runtime.checkpoint import checkpoint_dir, list_checkpoints, load_checkpoint, newest_good
from redi.runtime.device import choose_device
from redi.runtime.paths import local_path
from redi.runtime.spelling import few
from redi.sampling.generate import Generated, generate
from redi.sampling.networks import Opened, OpenNetwork, Origin, network_record
from redi.sampling.notebook import shown
from redi.sampling.pictures import ColourBasis

log = logging.getLogger(__name__)

SAMPLING = ("model", "ema", "codec", "colours")  # tensor groups of a checkpoint that sampling reads


@dataclass(repr=False)
class Run:
    """A trained model and everything needed to sample from it."""

    model: nn.Module  # with the EMA weights, in eval mode
    codec: JointCodec
    process: Process
    objective: JointObjective | None  # None if the run's configuration binds none
    weights: Mapping[str, Mapping[str, Tensor]]  # {"ema": {parameter name: tensor}, "model": ...}
    colours: ColourBasis
    step: int
    num_classes: int
    image_size: int
    folder: Path | None = None  # the folder of config.gin
    record: Mapping | None = None  # record.json of the checkpoint
    gin_bindings: Sequence[str] = ()  # bindings that override config.gin
    class_names: Sequence[str] | None = None  # names of labels 0, 1, ...; None if unknown

    def __repr__(self) -> str:
        what = f"{type(self.model).__name__} of step {self.step:,}, {', '.join(self.codec.channels)}"
        return f"<Run {self.folder}: {what}, {self.image_size} x {self.image_size} pixels, {self.num_classes} classes>"

    def _repr_html_(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        files = [*self.folder.glob("previews/*.png"), *self.folder.glob("samples.png")] if self.folder else []
        rows = {
            "run": self.folder, "step": f"{self.step:,}",
            "model": f"{type(self.model).__name__}, {size / 1e6:.3g} M parameters",
            "channel groups": ", ".join(f"{name} ({count})" for name, count in self.codec.channels.items()),
            "images": f"{self.image_size} x {self.image_size} pixels",
            "classes": few(self.class_names, 10) if self.class_names else self.num_classes,
        }  # fmt: skip
        return shown(rows, open_image(max(files).read_bytes()) if files else None)  # samples, else the last preview

    def generate(self, labels: Sequence[int | str] | Tensor, **settings) -> Generated:
        """Generate one image per label (class number or class name); `settings` are arguments of `redi.generate`."""
        drawn = generate(self.model, self.codec, self.process, labels=labels, **settings)
        return replace(drawn, channels=self.codec.channels, colours=self.colours, class_names=self.class_names)


def load(
    run_dir: str | Path, *, step: int | None = None, device: str = "auto", gin_bindings: Sequence[str] = (),
    plugins: Sequence[str] = (), codec: JointCodec | None = None, model=None, process: Process | None = None,
) -> Run:  # fmt: skip
    """Open a run: the model with its EMA weights, the fitted codec and the process.

    Only safetensors and JSON files are read; code in a checkpoint is never run. Components are built from the run's
    `config.gin`, which may only import modules in `plugins` or imported before. gin's current configuration is kept.

    Args:
        step: training step of the checkpoint; default: the newest undamaged one. Damaged ones cause a warning.
        gin_bindings: override the run's config.gin, for example "StableVAE.weights = '/path/on/this/machine'".
        plugins: packages or modules that the run's config.gin may import, for example 'my_lab'. Their code runs.
        codec, model, process: for a run trained without gin: an unfitted codec, `model` as passed to `train`, and the
            process if it is not FlowMatching; with a clock, `redi.core.processes.clocked.Clocked(process, clock)`.

    Raises ValueError: no run, no such checkpoint, or a damaged or incompatible one; `gin_bindings` together with
    `codec`; a configuration that imports a module that is not allowed.
    """
    trusted_imports.trust(*plugins)
    run_dir, target = local_path(run_dir), choose_device(device)
    if not (checkpoints := list_checkpoints(run_dir)):
        raise ValueError(f"{run_dir} holds no checkpoints: pass the folder of a run that has saved one")
    if step is None:
        newest = newest_good(run_dir, SAMPLING, set_aside=False)
        assert newest is not None  # there are checkpoints, and an error if all are damaged
        folder, tensors, record = newest
    elif (folder := checkpoint_dir(run_dir, step)) in checkpoints:
        tensors, record = load_checkpoint(folder, SAMPLING)
    else:
        names = ", ".join(path.name for path in checkpoints)
        raise ValueError(f"{run_dir} has no checkpoint of step {step}: choose one of {names}")
    options: dict[str, Any] = {"device": target, "model": model, "process": process}
    if codec is None:
        return open_configured(run_dir, folder, tensors, record, gin_bindings=gin_bindings, **options)
    if gin_bindings:
        raise ValueError(f"gin_bindings = {list(gin_bindings)} have no effect on the codec= argument: drop one of them")
    return open_run(run_dir, folder, tensors, record, codec=codec, **options)


def open_configured(
    run_dir: Path, *stored, gin_bindings: Sequence[str] = (), model=None, process: Process | None = None, device
) -> Run:
    """Call `open_run` with the codec, model class and objective of `run_dir/config.gin`."""
    path = run_dir / "config.gin"
    if not path.exists():
        raise ValueError(f"{path} is missing: for a run trained without gin, pass codec= and model= to redi.load")
    with config.isolated():
        import_all()
        config.parse([], gin_bindings, saved=[path])
        if unused := config.without_effect(entry_points, among=config.of_user):
            log.warning("unused bindings, which no component in use refers to: %s", ", ".join(unused))
        return open_run(
            run_dir, *stored, device=device, codec=config.bound("train.codec") or JointCodec(),
            model=model or config.bound("train.model", DiffusionTransformer), process=process,
            objective=config.bound("train.objective", JointObjective), gin_bindings=gin_bindings,
        )  # fmt: skip


def open_run(
    run_dir: Path, folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], record: Mapping, *,
    device: torch.device, codec: JointCodec, model=None, process: Process | None = None,
    objective: Callable[..., JointObjective] | None = None, gin_bindings: Sequence[str] = (),
) -> Run:  # fmt: skip
    """Build the run whose tensors and record were read from `folder`. EMA weights replace missing raw weights."""
    arguments = record["model_arguments"] | {"channels": Channels(**record["model_arguments"]["channels"])}
    channels, num_classes = arguments["channels"], arguments["num_classes"]
    codec.for_image_size(record["image_size"]).load_learned_state(tensors["codec"])
    if codec.channels != channels:
        advice = "bind the weights of the autoencoder that it was trained with"
        raise ValueError(f"{folder} was trained with {channels}, but the codec has {codec.channels}: {advice}")
    build, stored = model or DiffusionTransformer, dict(tensors.get("model", {})) | dict(tensors["ema"])
    built = objective and objective(channels=channels, num_classes=num_classes).with_parts_of(codec)
    try:
        # First on the meta device: an untrusted configuration could request any amount of memory.
        with torch.device("meta"):
            build_model(build, arguments).load_state_dict(without_parts(stored), assign=True)
        net = build_model(build, arguments)
        (built.attach(net) if built else net).load_state_dict(stored if built else without_parts(stored))
    except RuntimeError as error:
        raise ValueError(f"{folder} does not fit the model that train.model (or model=) builds: {error}") from None
    net.to(device).eval().requires_grad_(False)
    if built:
        net.trained_with = built.trained_with  # type: ignore[assignment]  # not a module
    names = record.get("class_names") or class_names(run_dir)
    net.joint_state = state_of(net)._replace(class_names=names)  # type: ignore[assignment]  # not a module
    tensors = with_one_bias(tensors, net.state_dict())
    weights = {
        name: {key: t.to(device) for key, t in tensors.get(name, tensors["ema"]).items() if key in tensors["ema"]}
        for name in ("ema", "model")
    }
    process = process or (built or JointObjective(channels=channels, num_classes=num_classes)).process
    warn_of_edits(record, folder, net, codec, built, process, *vars(process).values())
    codec = codec.to(device)
    net.origin = Origin(run_dir, record["step"], process, codec)  # type: ignore[assignment]  # not a module
    net.open_network = network_opener(run_dir, gin_bindings)  # type: ignore[assignment]
    return Run(
        net, codec, process, built, weights, ColourBasis(tensors.get("colours", {})),
        record["step"], num_classes, record["image_size"], run_dir, record, gin_bindings, names,
    )  # fmt: skip


def network_opener(run_dir: Path, gin_bindings: Sequence[str] = ()) -> OpenNetwork:
    """Return the function that opens the networks of guidance rules for a model of `run_dir`, each of them once.

    `gin_bindings` override the configuration of `run_dir`, also for its earlier steps, but not that of other runs.
    """
    opened: dict[str, nn.Module] = {}

    # A function: copies of the model, as `generate` makes them, share it.
    def open_network(settings: Mapping[str, Any], device: torch.device) -> Opened:
        record = network_record(settings, run_dir)
        if (key := f"{record} on {device}") not in opened:
            log.info("guidance: opening step %d of %s", record["trained_steps"], record["weak"])
            bindings = gin_bindings if local_path(record["weak"]).resolve() == run_dir.resolve() else ()
            run = load(record["weak"], step=record["trained_steps"], device=str(device), gin_bindings=bindings)
            opened[key] = run.model
        return opened[key], record

    return open_network
