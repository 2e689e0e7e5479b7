"""Features of samples, computed once: <run_dir>/features/<network>-<hash of its provenance>."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import redi
from redi.core.registry import identity
from redi.evaluation.metrics.features import Features
from redi.evaluation.samples.parts import Parts, load_part
from redi.evaluation.samples.stored import Samples
from redi.models.encoders import Encoder
from redi.runtime.artefact import read_record
from redi.runtime.atomic import stamp
from redi.runtime.checksums import BrokenArtefact, without_versions
from redi.runtime.progress import progress
from redi.runtime.shared_work import complete

log = logging.getLogger(__name__)

FOLDER = "features"
BATCH = 64  # images in one pass: Inception at 299 pixels holds about 10 MB for each


def sample_features(
    run_dir: str | Path, samples: Samples, network: Encoder, rank: int = 0, world_size: int = 1
) -> list[Features]:
    """Features of every set of samples, in order; computed from the images where they are not stored yet.

    What is stored is found again for the same images and a network of the same provenance, whatever the libraries'
    versions.

    Args:
        network: ready for use, on the device that it is to run on.
        rank, world_size: see `redi.runtime.shared_work.complete`; the result is the same for all.

    Raises:
        ValueError: neither features nor images are there; features that are not finite, naming the sample.
    """
    folder, refused = feature_folder(run_dir, network), None
    if folder.exists():
        try:
            read_record(folder)
        except BrokenArtefact as error:
            log.warning("computed anew, for they were damaged: %s", error)
    if is_stored(folder, samples.sha256):
        try:
            return _load(folder, samples)
        except BrokenArtefact as error:
            if not samples.has_images:
                what = f"{error}; the images were not kept: delete {folder} and run redi.sample again"
                raise BrokenArtefact(what) from None
            log.warning("computed anew, for they were damaged: %s", error)
            refused = stamp(folder)
    if not samples.has_images:
        raise ValueError(
            f"{samples.folder} holds no images (sample.keep = {tuple(samples.record['kept'])}), and {folder} no "
            f"features of these samples: bind sample.networks to this network, or keep 'images', and sample again"
        )
    with progress(total=len(samples), desc=f"features in {network.name}", unit="img", disable=rank > 0) as bar:
        job = _Extraction(folder, samples, network, refused, bar)
        complete(
            job.parts.work, job.parts.names, is_done=job.parts.__contains__, do=job.extract, finished=job.finished,
            finish=job.finish, rank=rank, world_size=world_size,
        )  # fmt: skip
    return _load(folder, samples)


class _Extraction:
    """What `complete` is given to do: one part is one of the samples'."""

    def __init__(self, folder: Path, samples: Samples, network: Encoder, refused: tuple | None, bar):
        self.folder, self.samples, self.network, self.refused, self.bar = folder, samples, network, refused, bar
        names = [Path(part["file"]).stem for part in samples.record["parts"]]
        self.parts = Parts(folder, folder.with_name(f".{folder.name}.{samples.sha256[:12]}.work"), names)

    def finished(self) -> bool:
        return is_stored(self.folder, self.samples.sha256) and stamp(self.folder) != self.refused

    def extract(self, name: str) -> None:
        index = self.parts.names.index(name)
        images = self.samples.part(index)["images"]
        self.parts.write(name, features_of(self.network, images, self.samples.record["parts"][index]["start"]), {})
        self.bar.update(len(images))

    def finish(self) -> None:
        if (records := self.parts.checked()) is not None:
            parts = self.samples.record["parts"]
            self.parts.assemble(feature_record(self.network, self.samples.sha256, parts), records)


def features_of(network: Encoder, images: Tensor, first: int) -> dict[str, Tensor]:
    """`Encoder.metric_features` of uint8 images (N, 3, S, S), on the CPU.

    Raises:
        ValueError: NaN or infinite values, naming the first image; `first` is the number of the first one here.
    """
    with torch.no_grad():
        parts = [network.metric_features(batch) for batch in images.split(BATCH)]
    found = {name: torch.cat([part[name].float().cpu() for part in parts]) for name in parts[0]}
    for name, tensor in found.items():
        finite = tensor.isfinite().all(dim=1)
        if not finite.all():
            index = first + int((~finite).nonzero()[0])
            raise ValueError(
                f"NaN or infinite values in the {name} features of {type(network).__name__} for sample {index}: look "
                "at that image, and at the network's weights and precision"
            )
    return found


def feature_folder(run_dir: str | Path, network: Encoder) -> Path:
    """Where the features in a network lie."""
    known = without_versions(network.provenance())
    if source := identity(network).get("source_sha256"):  # an edited plug-in makes other features
        known |= {"source_sha256": source}
    known = json.dumps(known, sort_keys=True)
    return Path(run_dir) / FOLDER / f"{network.name}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"


def feature_record(network: Encoder, samples_sha256: str, parts: Sequence[dict]) -> dict:
    """The record of stored features; `parts` as in the record of the samples."""
    return {
        "network": network.provenance(),
        "samples_sha256": samples_sha256,
        "parts": list(parts),
        "versions": {"redi": redi.__version__, "torch": str(torch.__version__)},
    }


def is_stored(folder: Path, samples_sha256: str) -> bool:
    """Whether features of these samples are in a folder."""
    try:
        return read_record(folder).get("samples_sha256") == samples_sha256
    except BrokenArtefact:
        return False


def _load(folder: Path, samples: Samples) -> list[Features]:
    files = read_record(folder)["files"]
    by_part = [load_part(folder, part["file"], files[part["file"]]) for part in samples.record["parts"]]
    sets = []
    for one in samples.sets:
        # All parts hold equal names; those of a set stand together.
        mine = [t for t, part in zip(by_part, samples.record["parts"], strict=True) if part["seed"] == one["seed"]]
        sets.append(Features("samples", {name: torch.cat([t[name] for t in mine]) for name in mine[0]}))
    return sets
