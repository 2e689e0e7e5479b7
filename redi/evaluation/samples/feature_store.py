"""Features of samples, computed once and stored in <run_dir>/features/<network>-<hash of its provenance>."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import redi
from redi.core.registry import identity
from redi.data.cache.write import check_encoded
from redi.evaluation.metrics.features import Features
from redi.evaluation.samples.stored import Samples
from redi.models.encoders import Encoder
from redi.runtime.artefact import load_artefact, read_record
from redi.runtime.atomic import stamp
from redi.runtime.checksums import BrokenArtefact, json_sha256, without_versions
from redi.runtime.shared_work import SharedJob

log = logging.getLogger(__name__)

FOLDER = "features"
BATCH = 64  # images per forward pass: Inception at 299 pixels needs about 10 MB per image


def sample_features(
    run_dir: str | Path, samples: Samples, network: Encoder, rank: int = 0, world_size: int = 1
) -> list[Features]:
    """Return the features of every set of samples, in order. Missing ones are computed from the images and stored.

    The network must be fitted and loaded, on the device on which it runs.
    Raises ValueError: neither features nor images are stored, or features are not finite. The message names the sample.
    """
    folder, before = feature_folder(run_dir, network), None
    try:
        if folder.exists() and read_record(folder).get("samples_sha256") == samples.sha256:
            return _load(folder, samples)
    except BrokenArtefact as error:
        if not samples.has_images and is_stored(folder, samples.sha256):
            what = f"{error}; the images were not kept: delete {folder} and run redi.sample again"
            raise BrokenArtefact(what) from None
        log.warning("the features are damaged and will be computed again: %s", error)
        before = stamp(folder)
    if not samples.has_images:
        raise ValueError(
            f"{samples.folder} holds no images (sample.keep = {tuple(samples.record['kept'])}), and {folder} holds no "
            f"features of these samples: set sample.networks to this network, or keep 'images', and sample again"
        )
    parts = samples.record["parts"]
    work = folder.with_name(f".{folder.name}.{samples.sha256[:12]}.work")
    job = SharedJob(work, [part["stop"] - part["start"] for part in parts])

    def extract(index: int) -> None:
        images = samples.part(index)["images"]
        job.store(index, {folder.name: features_of(network, images, parts[index]["start"])})

    def finish(records: list[dict]) -> None:
        job.assemble_artefact(folder.name, folder, feature_record(network, samples.sha256, parts), records)

    job.run(
        do=extract, finish=finish, finished=lambda: is_stored(folder, samples.sha256) and stamp(folder) != before,
        rank=rank, world_size=world_size, desc=f"features in {network.name}",
    )  # fmt: skip
    return _load(folder, samples)


def features_of(network: Encoder, images: Tensor, first: int) -> dict[str, Tensor]:
    """Compute `Encoder.metric_features` of uint8 images (N, 3, S, S) and return them on the CPU.

    `first` is the number of the first image, for the ValueError about NaN or infinite values.
    """
    with torch.no_grad():
        parts = [network.metric_features(batch) for batch in images.split(BATCH)]
    features = {name: torch.cat([part[name].float().cpu() for part in parts]) for name in parts[0]}
    for name, tensor in features.items():
        samples = [f"sample {number}" for number in range(first, first + len(tensor))]
        check_encoded(tensor, f"the {name} features of {type(network).__name__}", samples)
    return features


def feature_folder(run_dir: str | Path, network: Encoder) -> Path:
    """Return the folder of the features of a network."""
    provenance = without_versions(network.provenance())
    if source := identity(network).get("source_sha256"):  # an edited plug-in computes other features
        provenance |= {"source_sha256": source}
    return Path(run_dir) / FOLDER / f"{network.name}-{json_sha256(provenance)[:12]}"


def feature_record(network: Encoder, samples_sha256: str, parts: Sequence[dict]) -> dict:
    """Return the record of stored features; `parts` as in the record of the samples."""
    versions = {"redi": redi.__version__, "torch": str(torch.__version__)}
    source = {"network": network.provenance(), "samples_sha256": samples_sha256}
    return source | {"parts": list(parts), "versions": versions}


def is_stored(folder: Path, samples_sha256: str) -> bool:
    """Return whether the folder holds features of these samples."""
    try:
        return read_record(folder).get("samples_sha256") == samples_sha256
    except BrokenArtefact:
        return False


def _load(folder: Path, samples: Samples) -> list[Features]:
    stored, _ = load_artefact(folder)
    sets = []
    for one in samples.sets:
        parts = [stored[Path(part["file"]).stem] for part in samples.record["parts"] if part["seed"] == one["seed"]]
        sets.append(Features("samples", {name: torch.cat([part[name] for part in parts]) for name in parts[0]}))
    return sets
