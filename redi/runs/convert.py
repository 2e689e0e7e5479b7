"""Import published checkpoints (DiT, SiT, REPA, ReDi, REG, ...) as runs, and export weights in the published layout."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from redi.core import config
from redi.core.configurables import import_all
from redi.models.codec import JointCodec
from redi.models.published.bindings import choose_framework, model_bindings, process_bindings, recipe
from redi.models.published.file import PublishedFile, read_published
from redi.models.published.layout import Layout
from redi.models.published.parse import parse_layout
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
    """Write a published checkpoint as a run folder, which `redi.load` and the programs open; return its checkpoint.

    Args:
        checkpoint: see `read_published`. EMA and raw weights are imported if the file has both.
        framework: see `choose_framework`.
        pca: the fit of the reducer, if exactly one reducer is not fitted; copied into the run.
        step: training step; default: the step in the file, else 0.
        gin_files: default: the `recipe` of the framework. The sizes and process of the checkpoint override it.
        gin_bindings: override everything else.

    Raises ValueError: the file is not supported, the configuration does not fit it, or `run_dir` holds a run.
    """
    run_dir = local_path(run_dir)
    if list_checkpoints(run_dir) or (run_dir / "config.gin").exists():
        raise ValueError(f"{run_dir} already holds a run: choose another --run_dir")
    file = read_published(checkpoint)
    if (step := file.step if step is None else step) is None:
        log.warning("%s does not contain its training step; using 0. Pass --step to set it", file.path)
    elif step < 0:
        raise ValueError(f"--step={step}: must be at least 0")
    with config.isolated():
        framework, reason, layout = _configure(file, framework, gin_files, gin_bindings)
        codec = config.bound("train.codec") or JointCodec()
        image_size = layout.grid[0] * codec.autoencoder.downsample
        _check_statistics(codec, image_size)
        _take_pca(codec, pca)
        codec.for_image_size(image_size)
        both = _take_weights(file, codec, layout)
        text = config.full_text()
    # Copied, because both are one tensor in a file with averages alone, and safetensors refuses shared memory.
    leftovers = {f"{which}/{name}": t.clone() for which, part in both.items() for name, t in part.leftovers.items()}
    tensors = {which: imported.state for which, imported in both.items()}
    tensors |= {"codec": codec.learned_state(), "colours": _colours(codec), "leftovers": leftovers}
    digest = sha256(file.path) if len(file.files) == 1 else {part.name: sha256(part) for part in file.files}
    published = {
        "file": file.path.name, "sha256": digest, "args": file.args, "framework": framework,
        "evidence": [reason], "dtypes": {which: imported.dtypes for which, imported in both.items()},
    }  # fmt: skip
    arguments = both["ema"].runtime | {"channels": codec.channels.record()}
    record = {"model_arguments": arguments, "image_size": image_size, "published": published}
    folder = save_checkpoint(run_dir, step or 0, tensors, record, keep=Retention(1))
    trusted_imports.write(run_dir / "config.gin", text)
    return folder


def export(run_dir: str | Path, path: str | Path, *, weights: str = "ema") -> None:
    """Write the newest weights of a run in the published layout. For an imported run they are bit-equal to the import.

    Raises ValueError: an unknown file type, or a model that the layout cannot store (see `to_published`).
    """
    run_dir, path = local_path(run_dir), local_path(path)
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise ValueError(f"--export={path}: the file name must end in .pt, .pth or .safetensors")
    run = load(run_dir, device="cpu")
    newest = newest_good(run_dir, set_aside=False)
    assert newest is not None  # `load` has opened it
    _, tensors, record = newest
    stored, prefix = tensors.get("leftovers", {}), f"{weights}/"
    leftovers = {name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)}
    dtypes = record.get("published", {}).get("dtypes", {}).get(weights)
    state = to_published(
        run.model, run.weights[weights], leftovers=leftovers, dtypes=dtypes,  # type: ignore[arg-type]  # refuses others
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        save_file(state, temporary) if path.suffix == ".safetensors" else torch.save(state, temporary)


def _configure(
    file: PublishedFile, framework: str | None, gin_files: Sequence[str], gin_bindings: Sequence[str]
) -> tuple[str, str, Layout]:
    """Parse the configuration that fits a file; return (framework, reason for it, layout)."""
    import_all()
    grid = None if "pos_embed" in file.state() else _grid(file, gin_files, gin_bindings)
    layout = parse_layout(file.state(), grid)
    framework, reason = choose_framework(layout, file.args, framework)
    log.info("%s: %s", framework, reason)
    files, bindings = list(gin_files), process_bindings(layout, framework, file.args)
    if not gin_files:
        files, bindings = recipe(layout, framework), [*layout.bindings(), *bindings]
    config.parse(files, [*bindings, *gin_bindings])  # for the number of heads, which no checkpoint contains
    sizes = model_bindings(layout, file.args, config.bound("DiffusionTransformer.num_heads"))
    config.parse(files, [*bindings, *sizes, *gin_bindings])
    return framework, reason, layout


def _grid(file: PublishedFile, gin_files: Sequence[str], gin_bindings: Sequence[str]) -> tuple[int, int]:
    """Return (H, W) of the latents, from the image size in the checkpoint or, if it has none, in the configuration."""
    config.parse(gin_files or ["imagenet.gin"], gin_bindings)
    codec = config.bound("train.codec") or JointCodec()
    size = file.args.get("image_size", file.args.get("resolution"))
    if type(size) is not int:
        size = config.bound("Preprocessing.image_size", 256)
        log.warning("%s does not contain its image size; using Preprocessing.image_size = %d", file.path, size)
    return (size // codec.autoencoder.downsample,) * 2


def _take_weights(file: PublishedFile, codec: JointCodec, layout: Layout) -> dict[str, Imported]:
    """Return {"ema": ..., "model": ...}. Raises ValueError: the configured model does not fit the EMA weights."""
    objective = config.bound("train.objective")(channels=codec.channels, num_classes=layout.num_classes)
    variances = set(objective.process.variance_groups)
    if variances not in (set(), set(codec.channels)):
        raise ValueError("DDPM.learned_variance must name all groups or none: published models learn all or none")
    options = {"channels": codec.channels, "num_heads": config.bound("DiffusionTransformer.num_heads")}
    options |= {"learned_variance": bool(variances), "grid": None if "pos_embed" in file.state() else layout.grid}
    both = {which: from_published(file.state(which), **options) for which in ("ema", "model")}
    with torch.device("meta"):
        model = config.bound("train.model")(**both["ema"].runtime)
    try:
        model.load_state_dict(both["ema"].state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the configured DiffusionTransformer does not fit the checkpoint: {error}") from None
    return both


def _check_statistics(codec: JointCodec, image_size: int) -> None:
    statistics = codec.statistics
    if statistics is None:
        return
    if not statistics.fitted:
        raise ValueError(
            "LatentStatistics.path = None: must be the file of the statistics that normalised the latents in training, "
            "because checkpoints do not contain them; it is published with the latents or the autoencoder"
        )
    statistics.load()
    codec.grid(image_size)  # refuses statistics of other channels or another grid


def _take_pca(codec: JointCodec, pca: str | Path | None) -> None:
    unfitted = [r.reducer for r in codec.representations.values() if not r.reducer.fitted]
    if not unfitted and pca:
        raise ValueError(f"--pca={pca} has no effect, because every reducer is already fitted: drop the flag")
    if not unfitted:
        return
    if not pca:
        name, rank = type(unfitted[0]).__name__, sum(reducer.rank for reducer in unfitted)
        file = "--pca=dino_pca_model.pth, the file published with the paper's code (github.com/zelaki/ReDi)"
        source = file if name == "PCA" else f"--gin_bindings={f'{name}.weights = <published file>'!r}"
        raise ValueError(
            f"the checkpoint models {rank} feature channels, and checkpoints do not contain the {name} that produced "
            f"them: pass {source}, or --pca=<folder of a saved reducer>"
        )
    if len(unfitted) > 1:
        raise ValueError(f"--pca is for one reducer, but {len(unfitted)} are not fitted: bind their paths instead")
    for reducer in unfitted:
        reducer.restore(pca)


def _colours(codec: JointCodec) -> dict[str, Tensor]:
    """Return a colour basis that needs no images: the first channels, in the 1st to 99th percentile of a Gaussian."""
    tensors = {}
    for name in codec.channels.maps[1:]:
        reducer = codec.representations[name].reducer
        spread = torch.ones(reducer.rank)
        if isinstance(deviations := getattr(reducer, "deviations", None), Tensor):
            spread = (deviations[: reducer.rank] * reducer.factors).cpu()
        rows = torch.eye(reducer.rank)[:3]
        tensors[f"{name}/mean"], tensors[f"{name}/rows"] = torch.zeros(reducer.rank), rows
        tensors[f"{name}/low"], tensors[f"{name}/high"] = -2.33 * spread[:3], 2.33 * spread[:3]
    return tensors
