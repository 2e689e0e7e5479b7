"""Makes a run of a published checkpoint (DiT, SiT, REPA, ReDi), or writes a run's weights in the published layout.

python -m redi.convert --checkpoint=redi_xl.pt --pca=dino_pca_model.pth --run_dir=runs/redi_xl
python -m redi.convert --run_dir=runs/redi_xl --export=again.pt
"""

import logging
import uuid
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from redi import command_line

log = logging.getLogger("redi")

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A published checkpoint: .pt, .pth or .safetensors.")
flags.DEFINE_enum("framework", None, ["sit", "dit", "repa"], "What it is of, where that cannot be told from the file.")
flags.DEFINE_string(
    "pca", None, "The statistics of the features: dino_pca_model.pth, or the folder of a saved reducer."
)
flags.DEFINE_string("export", None, "Write the run's weights to this file: .pt, .pth or .safetensors.")
flags.DEFINE_enum("weights", "ema", ["ema", "model"], "Which weights to export.")
OWN_FLAGS = ("checkpoint", "framework", "pca", "export", "weights")

PCA_MISSING = (
    "the checkpoint has {rank} channels of features, and no checkpoint holds the statistics that made them: give "
    "--pca=dino_pca_model.pth, the file that is published beside the code of the paper (github.com/zelaki/ReDi), or "
    "the folder of a reducer that was saved"
)


def import_checkpoint(
    checkpoint: str | Path,
    run_dir: str | Path,
    *,
    framework: str | None = None,
    pca: str | Path | None = None,
    gin_files: Sequence[str] = (),
    gin_bindings: Sequence[str] = (),
) -> Path:
    """Writes a run folder that `redi.load`, redi.sample and redi.evaluate open. gin's configuration at hand stays as it
    was.

    Args:
        checkpoint: see `read_published`. The averaged and the raw weights are taken over, as far as they are there.
        framework: see `decide_framework`.
        pca: the fit of the one reducer that has none; read now and copied into the run.
        gin_files: default: imagenet.gin (without features imagenet_plain.gin), sit.gin or dit.gin, and published.gin.
            What the file itself tells (sizes, process) wins over them.
        gin_bindings: win over everything.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: a file that is refused or not understood, a configuration that does not fit it, a run in `run_dir`.
    """
    from redi.core import config
    from redi.models.codec import JointCodec
    from redi.models.published.file import read_published
    from redi.runtime.checkpoint import Retention, list_checkpoints, save_checkpoint

    run_dir = Path(run_dir)
    if list_checkpoints(run_dir) or (run_dir / "config.gin").exists():
        raise ValueError(f"{run_dir} holds a run already: choose another --run_dir")
    file = read_published(checkpoint)
    with config.isolated():
        framework, evidence = _configure(file, framework, gin_files, gin_bindings)
        codec = config.bound("train.codec") or JointCodec()
        _take_pca(codec, pca)
        both = _take_weights(file, codec)
        text = config.full_text()
    record = _record(file, both, codec, framework, evidence)
    folder = save_checkpoint(run_dir, file.step, _tensors(both, codec), record, keep=Retention(1))
    (run_dir / "config.gin").write_text(text)
    return folder


def _configure(file, framework: str | None, gin_files: Sequence[str], gin_bindings: Sequence[str]):
    """Parses the configuration that fits a file -> its framework and the evidence for that. Two passes: what the
    framework is shows in the weights, and to take them apart needs the codec's channels."""
    from redi.core import config
    from redi.core.configurables import import_all
    from redi.models.codec import JointCodec
    from redi.models.published.bindings import layout_bindings, model_bindings, process_bindings
    from redi.models.published.framework import decide_framework
    from redi.models.published.layout import describe
    from redi.models.published.weights import from_published

    import_all()
    layout = describe(file.state())
    plain = layout.in_channels == 4
    files = list(gin_files) or (["imagenet_plain.gin"] if plain else ["imagenet.gin", "published.gin"])
    early = [] if gin_files else layout_bindings(layout)
    config.parse(files, [*early, *gin_bindings])
    codec, num_heads = config.bound("train.codec") or JointCodec(), config.bound("DiffusionTransformer.num_heads")
    imported = from_published(file.state(), channels=codec.channels, num_heads=num_heads)
    framework, evidence = decide_framework(imported, file.args, framework)
    for reason in evidence:
        log.info("%s: %s", framework, reason)
    if not gin_files:
        files.insert(1, "dit.gin" if framework == "dit" else "sit.gin")
    told = [*early, *process_bindings(imported, framework, file.args), *model_bindings(imported, file.args)]
    config.parse(files, [*told, *gin_bindings])
    return framework, evidence


def _take_weights(file, codec) -> dict:
    """{"ema", "model": `Imported`} for the parsed configuration, whose model they are tried on."""
    from redi.core import config
    from redi.models.published.layout import describe
    from redi.models.published.weights import from_published

    num_classes = describe(file.state()).num_classes
    objective = config.bound("train.objective")(channels=codec.channels, num_classes=num_classes)
    variances = set(objective.process.variance_groups)
    if variances not in (set(), set(codec.channels)):
        raise ValueError("DDPM.learned_variance: a published model has all variances or none")
    how = {"channels": codec.channels, "num_heads": config.bound("DiffusionTransformer.num_heads")}
    how["learned_variance"] = bool(variances)
    both = {which: from_published(file.state(which), **how) for which in ("ema", "model")}
    _try(config.bound("train.model"), both["ema"])
    return both


def _tensors(both: dict, codec) -> dict:
    """What a checkpoint of training has, less the optimizer; and the leftovers, for `export`."""
    leftovers = {f"{which}/{name}": t for which, imported in both.items() for name, t in imported.leftovers.items()}
    tensors = {which: imported.state for which, imported in both.items()}
    return tensors | {"codec": codec.learned_state(), "colours": _colours(codec), "leftovers": leftovers}


def _record(file, both: dict, codec, framework: str, evidence: list[str]) -> dict:
    """What a checkpoint of training says that `redi.load` needs; and where the weights are from."""
    from redi.runtime.checksums import sha256

    published = {
        "file": file.path.name, "sha256": sha256(file.path), "args": file.args, "framework": framework,
        "evidence": evidence, "dtypes": {which: imported.dtypes for which, imported in both.items()},
    }  # fmt: skip
    return {
        "model_arguments": both["ema"].runtime | {"channels": dict(codec.channels)},
        "image_size": both["ema"].layout.grid[0] * codec.autoencoder.downsample,
        "published": published,
    }


def export(run_dir: str | Path, path: str | Path, *, weights: str = "ema") -> None:
    """Writes the newest weights of a run in the published layout; of an imported one, bit for bit what was imported.

    Raises:
        ValueError: an unknown file type, or a model that the layout has no place for (see `to_published`).
    """
    import torch
    from safetensors.torch import save_file

    from redi.models.published.weights import to_published
    from redi.runs.load import load
    from redi.runtime.checkpoint import newest_good

    path = Path(path)
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise ValueError(f"--export={path}: the name ends in .pt, .pth or .safetensors")
    run = load(run_dir, device="cpu")
    _, tensors, record = newest_good(Path(run_dir), set_aside=False)
    leftovers = {
        name.removeprefix(f"{weights}/"): tensor
        for name, tensor in tensors.get("leftovers", {}).items()
        if name.startswith(f"{weights}/")
    }
    dtypes = record.get("published", {}).get("dtypes", {}).get(weights)
    state = to_published(run.model, run.weights[weights], leftovers=leftovers, dtypes=dtypes)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        save_file(state, temporary) if path.suffix == ".safetensors" else torch.save(state, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _take_pca(codec, pca: str | Path | None) -> None:
    unfitted = [r.reducer for r in codec.representations.values() if not r.reducer.fitted]
    if not unfitted and pca:
        raise ValueError(f"--pca={pca}: no reducer of this configuration lacks a fit")
    if unfitted and not pca:
        raise ValueError(PCA_MISSING.format(rank=sum(reducer.rank for reducer in unfitted)))
    if len(unfitted) > 1:
        raise ValueError(f"--pca is the fit of one reducer, and {len(unfitted)} have none: bind the path of each")
    for reducer in unfitted:
        reducer.restore(pca)


def _colours(codec) -> dict:
    """A colour basis without images: the first channels, which of a PCA are the first components, to 2.33 standard
    deviations (the 1st and 99th percentile of a Gaussian)."""
    import torch

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


def _try(build, imported) -> None:
    """Raises ValueError where the configured model is not the one in the checkpoint."""
    import torch

    with torch.device("meta"):
        model = build(**imported.runtime)
    try:
        model.load_state_dict(imported.state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the configured DiffusionTransformer is not that of the checkpoint: {error}") from None


def main(run_dir: Path) -> None:
    if bool(FLAGS.checkpoint) == bool(FLAGS.export):
        raise ValueError("give either --checkpoint (to make a run of it) or --export (to write a run's weights)")
    if FLAGS.export:
        export(run_dir, FLAGS.export, weights=FLAGS.weights)
        log.info("%s weights of %s: %s", FLAGS.weights, run_dir, FLAGS.export)
        return
    folder = import_checkpoint(
        FLAGS.checkpoint, run_dir, framework=FLAGS.framework, pca=FLAGS.pca,
        gin_files=FLAGS.gin_file, gin_bindings=FLAGS.gin_bindings,
    )  # fmt: skip
    log.info("written: %s; draw from it: python -m redi.sample --run_dir=%s", folder, run_dir)


def console() -> None:
    command_line.run(main, __doc__, own_flags=OWN_FLAGS)


if __name__ == "__main__":
    console()
