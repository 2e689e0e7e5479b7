"""Features of reference images, computed once per set of images and network and cached with their record."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from redi.core.registry import identity
from redi.data.cache.write import check_encoded
from redi.data.datasets import Dataset, MixedSizes
from redi.evaluation.metrics.features import Features
from redi.models.encoders import Encoder
from redi.runtime.checksums import json_sha256, without_versions
from redi.runtime.paths import cache_folder
from redi.runtime.shared_work import SharedJob, load_or_create

BLOCK = 4096  # images per file: the unit of work of a process, and the most that is lost if one is killed


def reference_features(
    dataset: Dataset, network: Encoder, *, max_images: int | None = None, cache_dir: str | Path | None = None,
    batch_size: int = 64, rank: int = 0, world_size: int = 1,
) -> Features:  # fmt: skip
    """Return `network.metric_features` of the images, from the cache if they were computed before.

    The cache is `<cache_dir>/references/<hash of images and network>`. Several processes share the work, and an
    interrupted call keeps its finished parts.

    Args:
        max_images: maximum number of images, drawn from a fixed seed; default: all.

    Raises ValueError: no images, images of different sizes, or NaN or infinite features. The message names the image.
    """
    positions = reference_positions(dataset, max_images)
    if not positions:
        raise ValueError(f"the reference {type(dataset).__name__} holds no images: choose another data set or split")
    images, provenance = dataset.fingerprint(), network.provenance()
    key = json_sha256([images, without_versions(provenance), identity(network).get("source_sha256"), len(positions)])
    folder = cache_folder(cache_dir) / "references" / f"{type(dataset).__name__}-{key[:16]}"
    blocks = [positions[start : start + BLOCK] for start in range(0, len(positions), BLOCK)]
    job = SharedJob(folder.with_name(f".{folder.name}.work"), [len(block) for block in blocks])

    def compute(index: int) -> None:
        rows = defaultdict(list)
        for start in range(0, len(blocks[index]), batch_size):
            part = blocks[index][start : start + batch_size]
            for name, tensor in network.metric_features(_images(dataset, part)).items():
                names = [dataset.names[position] for position in part]
                check_encoded(tensor, f"the features ({name!r}) of {type(network).__name__}", names)
                if name != "logits":  # no metric uses the logits of a reference
                    rows[name].append(tensor.float().cpu())
            job.bar.update(len(part))
        job.store(index, {folder.name: {name: torch.cat(parts) for name, parts in rows.items()}})

    def finish(records: list[dict]) -> None:
        record = {"images": dataset.provenance(), "fingerprint": images, "network": provenance, "rows": len(positions)}
        job.assemble_artefact(folder.name, folder, record, records)

    def make(finished: Callable[[], bool]) -> None:
        network.load()
        job.run(
            do=compute, finish=finish, finished=finished, rank=rank, world_size=world_size, desc="reference features"
        )  # fmt: skip

    stored = load_or_create(folder, "computing the reference features", make)[0]
    parts = [stored[name] for name in sorted(stored)]
    return Features("reference", {name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def reference_positions(dataset: Dataset, max_images: int | None) -> list[int]:
    """Return the sorted positions of the images to use: all, or `max_images` drawn from a fixed seed."""
    if max_images is None or max_images >= len(dataset):
        return list(range(len(dataset)))
    return torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:max_images].sort()[0].tolist()


def _images(dataset: Dataset, positions: Sequence[int]) -> Tensor:
    """Read images (n, 3, S, S) uint8. Raises ValueError for an image that differs in size from the first one."""
    first, shape = dataset.names[0], dataset[0][0].shape
    pixels, remedy = f"{first} has {shape[2]}x{shape[1]} pixels", "set Preprocessing.image_size to the samples' size"
    if shape[1] != shape[2]:
        raise ValueError(f"{pixels}, but reference images must be square: {remedy}")
    with contextlib.suppress(MixedSizes):  # the error below names the image
        images = dataset.batch(positions)["images"]
        if images.shape[1:] == shape:
            return images
    other = next(position for position in positions if dataset[position][0].shape != shape)
    _, height, width = dataset[other][0].shape
    raise ValueError(f"reference images differ in size ({pixels}, {dataset.names[other]} {width}x{height}): {remedy}")
