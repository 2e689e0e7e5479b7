"""Runs of published checkpoints (DiT, SiT, REPA, ReDi), and a run's weights in the published layout."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from redi.core import config
from redi.core.configurables import import_all
from redi.models.codec import JointCodec
from redi.models.published.bindings import choose_framework, layout_bindings, model_bindings, process_bindings
from redi.models.published.file import PublishedFile, read_published
from redi.models.published.layout import parse_layout
from redi.models.published.weights import Imported, from_published, to_published
from redi.runs.load import load
from redi.runtime import trusted_imports
from redi.runtime.atomic import atomic_file
from redi.runtime.checkpoint import Retention, list_checkpoints, newest_good, save_checkpoint
from redi.runtime.checksums import sha256
from redi.runtime.paths import local_path

log = logging.getLogger("redi")


def import_checkpoint(
    checkpoint: str | Path, run_dir: str | Path, *, framework: str | None = None, pca: str | Path | None = None,
    step: int | None = None, gin_files: Sequence[str] = (), gin_bindings: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Write a run folder that `redi.load`, redi.sample and redi.evaluate open -> the checkpoint's folder.

    Args:
        checkpoint: see `read_published`. The averaged and the raw weights are taken over, where both are stored.
        framework: see `choose_framework`.
        pca: the fit of the one reducer that has none; read now and copied into the run.
        step: after how many steps it was written; default: what the file says, else 0.
        gin_files: default: imagenet.gin (without features imagenet_plain.gin), sit.gin or dit.gin, and published.gin.
            What the file itself says (sizes, process) wins over them.
        gin_bindings: win over everything.

    Raises:
        ValueError: a file that is refused or not understood, a configuration that does not fit it, a run in `run_dir`.
    """
    run_dir = local_path(run_dir)
    if list_checkpoints(run_dir) or (run_dir / "config.gin").exists():
        raise ValueError(f"{run_dir} holds a run already: choose another --run_dir")
    file = read_published(checkpoint)
    if (step := file.step if step is None else step) is None:
        log.warning("%s does not say its step: 0 is taken for it; --step=... states it", file.path)
    elif step < 0:
        raise ValueError(f"--step={step}: at least 0 is needed")
    with config.isolated():
        framework, reason, grid = _configure(file, framework, gin_files, gin_bindings)
        codec = config.bound("train.codec") or JointCodec()
        _take_pca(codec, pca)
        both = _take_weights(file, codec, grid)
        text = config.full_text()
    leftovers = {f"{which}/{name}": t for which, imported in both.items() for name, t in imported.leftovers.items()}
    tensors = {which: imported.state for which, imported in both.items()}
    tensors |= {"codec": codec.learned_state(), "colours": _colours(codec), "leftovers": leftovers}
    digest = sha256(file.path) if len(file.files) == 1 else {part.name: sha256(part) for part in file.files}
    published = {
        "file": file.path.name, "sha256": digest, "args": file.args, "framework": framework,
        "evidence": [reason], "dtypes": {which: imported.dtypes for which, imported in both.items()},
    }  # fmt: skip
    arguments = both["ema"].runtime | {"channels": dict(codec.channels)}
    image_size = both["ema"].layout.grid[0] * codec.autoencoder.downsample
    record = {"model_arguments": arguments, "image_size": image_size, "published": published}
    folder = save_checkpoint(run_dir, step or 0, tensors, record, keep=Retention(1))
    trusted_imports.write(run_dir / "config.gin", text)
    return folder


def export(run_dir: str | Path, path: str | Path, *, weights: str = "ema") -> None:
    """Write the newest weights of a run in the published layout; of an imported one, bit for bit what was imported.

    Raises ValueError: an unknown file type, or a model that the layout has no place for (see `to_published`).
    """
    run_dir, path = local_path(run_dir), local_path(path)
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise ValueError(f"--export={path}: the name ends in .pt, .pth or .safetensors")
    run = load(run_dir, device="cpu")
    _, tensors, record = newest_good(run_dir, set_aside=False)
    stored, prefix = tensors.get("leftovers", {}), f"{weights}/"
    leftovers = {name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)}
    dtypes = record.get("published", {}).get("dtypes", {}).get(weights)
    state = to_published(run.model, run.weights[weights], leftovers=leftovers, dtypes=dtypes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        save_file(state, temporary) if path.suffix == ".safetensors" else torch.save(state, temporary)


def _configure(
    file: PublishedFile, framework: str | None, gin_files: Sequence[str], gin_bindings: Sequence[str]
) -> tuple[str, str, tuple[int, int] | None]:
    """Parse the configuration that fits a file -> its framework, the reason, and the grid unless the file has it."""
    import_all()
    grid = None if "pos_embed" in file.state() else _grid(file, gin_files, gin_bindings)
    layout = parse_layout(file.state(), grid)
    framework, reason = choose_framework(layout, file.args, framework)
    log.info("%s: %s", framework, reason)
    files, stated = list(gin_files), process_bindings(layout, framework, file.args)
    if not gin_files:
        network = f"{'dit' if framework == 'dit' else 'sit'}.gin"
        plain = layout.in_channels == 4
        files = ["imagenet_plain.gin", network] if plain else ["imagenet.gin", network, "published.gin"]
        stated = [*layout_bindings(layout), *stated]
    config.parse(files, [*stated, *gin_bindings])  # for the number of heads, which is in no file
    sizes = model_bindings(layout, file.args, config.bound("DiffusionTransformer.num_heads"))
    config.parse(files, [*stated, *sizes, *gin_bindings])
    return framework, reason, grid


def _grid(file: PublishedFile, gin_files: Sequence[str], gin_bindings: Sequence[str]) -> tuple[int, int]:
    """(H, W) of the latents by the image size: of the training program's settings, else of the configuration."""
    config.parse(gin_files or ["imagenet.gin"], gin_bindings)
    codec = config.bound("train.codec") or JointCodec()
    size = file.args.get("image_size", file.args.get("resolution"))
    if type(size) is not int:
        size = config.bound("Preprocessing.image_size", 256)
        log.warning("%s does not say its image size: Preprocessing.image_size = %d is taken for it", file.path, size)
    return (size // codec.autoencoder.downsample,) * 2


def _take_weights(file: PublishedFile, codec: JointCodec, grid: tuple[int, int] | None) -> dict[str, Imported]:
    """{"ema", "model"} for the parsed configuration, whose model they are tried on."""
    num_classes = parse_layout(file.state(), grid).num_classes
    objective = config.bound("train.objective")(channels=codec.channels, num_classes=num_classes)
    variances = set(objective.process.variance_groups)
    if variances not in (set(), set(codec.channels)):
        raise ValueError("DDPM.learned_variance: a published model has all variances or none")
    options = {"channels": codec.channels, "num_heads": config.bound("DiffusionTransformer.num_heads"), "grid": grid}
    options["learned_variance"] = bool(variances)
    both = {which: from_published(file.state(which), **options) for which in ("ema", "model")}
    with torch.device("meta"):
        model = config.bound("train.model")(**both["ema"].runtime)
    try:
        model.load_state_dict(both["ema"].state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the configured DiffusionTransformer is not that of the checkpoint: {error}") from None
    return both


def _take_pca(codec: JointCodec, pca: str | Path | None) -> None:
    unfitted = [r.reducer for r in codec.representations.values() if not r.reducer.fitted]
    if not unfitted and pca:
        raise ValueError(f"--pca={pca}: no reducer of this configuration lacks a fit")
    if unfitted and not pca:
        raise ValueError(
            f"the checkpoint has {sum(reducer.rank for reducer in unfitted)} channels of features, and no checkpoint "
            "holds the statistics that made them: pass --pca=dino_pca_model.pth, the file that is published beside the "
            "code of the paper (github.com/zelaki/ReDi), or the folder of a saved reducer"
        )
    if len(unfitted) > 1:
        raise ValueError(f"--pca is the fit of one reducer, and {len(unfitted)} have none: bind the path of each")
    for reducer in unfitted:
        reducer.restore(pca)


def _colours(codec: JointCodec) -> dict[str, Tensor]:
    """A colour basis without images: the first channels, to the 1st and 99th percentile of a Gaussian (2.33 stds)."""
    tensors = {}
    for name, representation in codec.representations.items():
        reducer = representation.reducer
        spread = torch.ones(reducer.rank)
        if hasattr(reducer, "deviations"):
            spread = (reducer.deviations[: reducer.rank] * reducer.factors).cpu()
        rows = torch.eye(reducer.rank)[:3]
        tensors[f"{name}/mean"], tensors[f"{name}/rows"] = torch.zeros(reducer.rank), rows
        tensors[f"{name}/low"], tensors[f"{name}/high"] = -2.33 * spread[:3], 2.33 * spread[:3]
    return tensors
