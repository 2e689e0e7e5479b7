"""Run folders: opening a trained one again."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from redi.core import config
from redi.core.channels import Channels
from redi.core.configurables import import_all
from redi.core.objective import JointObjective
from redi.core.plug_ins import warn_of_edits
from redi.core.processes import Process
from redi.core.registry import entry_points
from redi.data.audit import class_names
from redi.fusion.merged import with_one_bias
from redi.models.codec import JointCodec
from redi.models.interface import build_model, state_of
from redi.models.transformer import DiffusionTransformer
from redi.runtime import trusted_imports
from redi.runtime.checkpoint import checkpoint_dir, list_checkpoints, load_checkpoint, newest_good
from redi.runtime.device import choose_device
from redi.runtime.paths import local_path
from redi.sampling.generate import Generated, generate
from redi.sampling.pictures import ColourBasis

log = logging.getLogger(__name__)

SAMPLING = ("model", "ema", "codec", "colours")  # the groups of a checkpoint that sampling reads


@dataclass(repr=False)
class Run:
    """A trained model with all that belongs to it."""

    model: nn.Module  # with the EMA weights, in eval mode
    codec: JointCodec
    process: Process
    objective: JointObjective | None  # what it was trained with, where the run's configuration says so
    weights: Mapping[str, Mapping[str, Tensor]]  # "ema" and "model": parameters by name
    colours: ColourBasis
    step: int
    num_classes: int
    image_size: int
    folder: Path | None = None  # where its config.gin lies
    record: Mapping | None = None  # of the checkpoint
    gin_bindings: Sequence[str] = ()  # that won over its config.gin
    class_names: Sequence[str] | None = None  # of labels 0, 1, ...; None: the run's folder does not say

    def __repr__(self) -> str:
        what = f"{type(self.model).__name__} of step {self.step:,}, {', '.join(self.codec.channels)}"
        return f"<Run {self.folder}: {what}, {self.image_size} x {self.image_size} pixels, {self.num_classes} classes>"

    def generate(self, labels: Sequence[int | str] | Tensor, **settings) -> Generated:
        """One image per label, a number or the name of a class; `settings` as of `redi.generate`."""
        return generate(self.model, self.codec, self.process, labels=labels, **settings)


def load(
    run_dir: str | Path, *, step: int | None = None, device: str = "auto", gin_bindings: Sequence[str] = (),
    plugins: Sequence[str] = (), codec: JointCodec | None = None, model=None, process: Process | None = None,
) -> Run:  # fmt: skip
    """Open a run: the model with its EMA weights, the fitted codec, the process.

    Only safetensors and JSON are read: no code in a checkpoint is ever run. The classes come from the run's
    `config.gin`, which may import what was named (`plugins`) or imported before. gin's current configuration is kept.

    Args:
        step: of the checkpoint; default: the newest undamaged one, with a warning where others are damaged.
        gin_bindings: win over the run's configuration, as "StableVAE.weights = '/where/they/are/here'".
        plugins: packages or modules that the run's configuration may import, as 'my_lab': their code runs.
        codec, model, process: for a run that was trained without gin: an unfitted codec, the function that builds
            the model (as given to `train`), and the process if it is not FlowMatching.

    Raises:
        ValueError: no run or no such checkpoint, or one that is damaged or foreign; bindings for a run that is built
            without gin; a configuration that imports what was not named.
    """
    trusted_imports.name(*plugins)
    run_dir, device = local_path(run_dir), choose_device(device)
    if not (found := list_checkpoints(run_dir)):
        raise ValueError(f"{run_dir} holds no checkpoints: it is not the folder of a run, or training never saved one")
    if step is None:
        folder, tensors, record = newest_good(run_dir, SAMPLING, set_aside=False)
    elif (folder := checkpoint_dir(run_dir, step)) in found:
        tensors, record = load_checkpoint(folder, SAMPLING)
    else:
        raise ValueError(f"no checkpoint of step {step} in {run_dir}: there are {', '.join(p.name for p in found)}")
    stored, options = (folder, tensors, record), {"device": device, "model": model, "process": process}
    if codec is None:
        return open_configured(run_dir, *stored, gin_bindings=gin_bindings, **options)
    if gin_bindings:
        raise ValueError(f"gin_bindings = {list(gin_bindings)} have no effect on the codec= that is given: drop one")
    return open_run(run_dir, *stored, codec=codec, **options)


def open_configured(
    run_dir: Path, *stored, gin_bindings: Sequence[str] = (), model=None, process: Process | None = None, device
) -> Run:
    """`open_run` with the codec, the model class and the objective of `run_dir/config.gin`."""
    path = run_dir / "config.gin"
    if not path.exists():
        raise ValueError(f"{path} is missing: for a run trained without gin, hand its codec= and model= to redi.load")
    with config.isolated():
        import_all()
        config.parse([], gin_bindings, found=[path])
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
    """The run whose tensors and record were read from `folder`. Without raw weights ("model"), the EMA's stand in."""
    arguments = record["model_arguments"] | {"channels": Channels(**record["model_arguments"]["channels"])}
    channels, num_classes = arguments["channels"], arguments["num_classes"]
    codec.load_learned_state(tensors["codec"])
    build, stored = model or DiffusionTransformer, dict(tensors.get("model", {})) | dict(tensors["ema"])
    try:
        # First without memory, of which a configuration of somebody else may ask for any amount.
        with torch.device("meta"):
            build_model(build, arguments).load_state_dict(stored, assign=True)
        net = build_model(build, arguments)
        net.load_state_dict(stored)
    except RuntimeError as error:
        raise ValueError(f"{folder} holds another model than model= builds: {error}") from None
    net.to(device).eval().requires_grad_(False)
    built = objective and objective(channels=channels, num_classes=num_classes)
    if built:
        net.trained_with = (built.label_dropout, built.representation_dropout)
    names = record.get("class_names") or class_names(run_dir)
    net.joint_state = state_of(net)._replace(class_names=names)
    tensors = with_one_bias(tensors, net.state_dict())
    weights = {
        name: {key: t.to(device) for key, t in tensors.get(name, tensors["ema"]).items() if key in tensors["ema"]}
        for name in ("ema", "model")
    }
    process = process or (built or JointObjective(channels=channels, num_classes=num_classes)).process
    warn_of_edits(record, folder, net, codec, built, process)
    return Run(
        net, codec.to(device), process, built, weights, ColourBasis(tensors.get("colours", {})),
        record["step"], num_classes, record["image_size"], run_dir, record, gin_bindings, names,
    )  # fmt: skip
