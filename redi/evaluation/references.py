"""Features of reference images: computed once for every set of images and network, and kept with their record."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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

BLOCK = 4096  # images in one file: the unit that is divided over processes and lost at most when one is killed


def reference_features(
    dataset: Dataset, network: Encoder, *, max_images: int | None = None, cache_dir: str | Path | None = None,
    batch_size: int = 64, rank: int = 0, world_size: int = 1,
) -> Features:  # fmt: skip
    """What `network.metric_features` gives for the images, from the cache where it was computed before.

    They lie in `<cache_dir>/references` under a hash of images and network; several processes share the work, and what
    an interrupted call has finished is kept.

    Args:
        max_images: at most so many, drawn from a fixed seed; default: all.

    Raises:
        ValueError: images of different sizes, NaN or infinite features (both named), no images.
    """
    positions = reference_positions(dataset, max_images)
    if not positions:
        raise ValueError(f"{type(dataset).__name__} holds no images to compare with")
    images, made_by = dataset.fingerprint(), network.provenance()
    key = json_sha256([images, without_versions(made_by), identity(network).get("source_sha256"), len(positions)])
    folder = cache_folder(cache_dir) / "references" / f"{type(dataset).__name__}-{key[:16]}"
    blocks = [positions[start : start + BLOCK] for start in range(0, len(positions), BLOCK)]
    job = SharedJob(folder.with_name(f".{folder.name}.work"), [len(block) for block in blocks])

    def compute(index: int) -> None:
        rows = defaultdict(list)
        for start in range(0, len(blocks[index]), batch_size):
            chosen = blocks[index][start : start + batch_size]
            for name, tensor in network.metric_features(_images(dataset, chosen)).items():
                names = [dataset.names[position] for position in chosen]
                check_encoded(tensor, f"the features ({name!r}) of {type(network).__name__}", names)
                if name != "logits":  # no metric looks at those of a reference
                    rows[name].append(tensor.float().cpu())
            job.bar.update(len(chosen))
        job.store(index, {folder.name: {name: torch.cat(parts) for name, parts in rows.items()}})

    def finish(records: list[dict]) -> None:
        record = {"images": dataset.provenance(), "fingerprint": images, "network": made_by, "rows": len(positions)}
        job.assemble_artefact(folder.name, folder, record, records)

    def make(finished: Callable[[], bool]) -> None:
        network.load()
        ranks = {"rank": rank, "world_size": world_size, "desc": "reference features"}
        job.run(do=compute, finish=finish, finished=finished, **ranks)

    return _joined(load_or_create(folder, "computing the reference features", make)[0])


def reference_positions(dataset: Dataset, max_images: int | None) -> list[int]:
    """Which images of a data set are looked at: all, or so many drawn from a fixed seed; sorted."""
    if max_images is None or max_images >= len(dataset):
        return list(range(len(dataset)))
    return torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:max_images].sort()[0].tolist()


def _images(dataset: Dataset, positions: Sequence[int]) -> Tensor:
    """(n, 3, S, S) uint8, of the size of the data set's first image."""
    first, shape = dataset.names[0], dataset[0][0].shape
    pixels, remedy = f"{first} has {shape[2]}x{shape[1]} pixels", "set Preprocessing.image_size to the samples' size"
    if shape[1] != shape[2]:
        raise ValueError(f"the reference's images are square, {pixels}: {remedy}")
    with contextlib.suppress(MixedSizes):  # which of them differ from the first image is said below
        images = dataset.batch(positions)["images"]
        if images.shape[1:] == shape:
            return images
    other = next(position for position in positions if dataset[position][0].shape != shape)
    _, height, width = dataset[other][0].shape
    raise ValueError(f"the reference mixes sizes: {pixels}, {dataset.names[other]} {width}x{height}: {remedy}")


def _joined(parts: Mapping[str, Mapping[str, Tensor]]) -> Features:
    ordered = [parts[name] for name in sorted(parts)]
    return Features("reference", {name: torch.cat([part[name] for part in ordered]) for name in ordered[0]})
