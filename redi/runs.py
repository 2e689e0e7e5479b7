"""Run folders: opening a trained one again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from redi import components
from redi.core import config
from redi.core.channels import Channels
from redi.core.checkpoint import checkpoint_dir, list_checkpoints, load_checkpoint
from redi.core.codec import JointCodec
from redi.core.device import choose_device
from redi.core.objective import JointObjective
from redi.core.processes import Process
from redi.evaluation.pictures import ColourBasis
from redi.models.transformer import DiffusionTransformer


@dataclass
class Run:
    """A trained model with all that belongs to it."""

    model: DiffusionTransformer  # with the EMA weights, in eval mode
    codec: JointCodec
    process: Process
    weights: Mapping[str, Mapping[str, Tensor]]  # "ema" and "model": parameters by name
    colours: ColourBasis
    step: int
    num_classes: int
    image_size: int


def load(
    run_dir: str | Path,
    *,
    step: int | None = None,
    device: str = "auto",
    codec: JointCodec | None = None,
    model=None,
    process: Process | None = None,
) -> Run:
    """Opens a run: the model with its EMA weights, the fitted codec, the process.

    Only safetensors and JSON are read: no code in a checkpoint is ever run. The classes come from the run's
    `config.gin` (which may import the modules of plug-ins); gin's configuration at hand stays as it was.

    Args:
        step: of the checkpoint; default: the newest.
        codec, model, process: for a run that was trained without gin: an unfitted codec, the function that builds
            the model (as given to `train`), and the process if it is not FlowMatching.

    Raises:
        ValueError: no run or no such checkpoint there, or one that is damaged or foreign.
    """
    run_dir, device = Path(run_dir), choose_device(device)
    if not (found := list_checkpoints(run_dir)):
        raise ValueError(f"{run_dir} holds no checkpoints: it is not the folder of a run, or training never saved one")
    folder = found[-1] if step is None else checkpoint_dir(run_dir, step)
    if folder not in found:
        raise ValueError(f"no checkpoint of step {step} in {run_dir}: there are {', '.join(p.name for p in found)}")
    tensors, record = load_checkpoint(folder)
    channels = Channels(**record["channels"])
    if codec is None:
        codec, built_model, built_process = _build(run_dir, channels, record["num_classes"])
        model, process = model or built_model, process or built_process
    codec.load_learned_state(tensors["codec"])
    net = (model or DiffusionTransformer)(channels=channels, grid=record["grid"], num_classes=record["num_classes"])
    try:
        net.load_state_dict(tensors["model"] | tensors["ema"])
    except RuntimeError as error:
        raise ValueError(f"{folder} holds another model than model= builds: {error}") from None
    net.to(device).eval().requires_grad_(False)
    weights = {
        name: {key: t.to(device) for key, t in tensors[name].items() if key in tensors["ema"]}
        for name in ("ema", "model")
    }
    process = process or JointObjective(channels=channels, num_classes=record["num_classes"]).process
    return Run(
        net, codec.to(device), process, weights, ColourBasis(tensors.get("colours", {})),
        record["step"], record["num_classes"], record["image_size"],
    )  # fmt: skip


def _build(run_dir: Path, channels: Channels, num_classes: int):
    """Codec, model class and process as the run's configuration says."""
    path = run_dir / "config.gin"
    if not path.exists():
        raise ValueError(f"{path} is missing: for a run trained without gin, hand its codec= and model= to redi.load")
    with config.isolated():
        components.import_all()
        config.parse([path])
        codec = config.bound("train.codec") or JointCodec()
        # Called inside the context: a bound class takes its arguments from the configuration when it is called.
        objective = config.bound("train.objective", JointObjective)(channels=channels, num_classes=num_classes)
        model_class = config.bound("train.model", DiffusionTransformer)

        def model(**runtime) -> DiffusionTransformer:
            with config.isolated():
                config.parse([path])
                return model_class(**runtime)

        return codec, model, objective.process
