"""Write a cache: encode every image once, shard by shard, with any number of processes."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

import redi
from redi.data.cache.cache import FORMAT, LEARNED, MANIFEST, MIRRORED, Cache, code_of, manifest_sha256
from redi.data.cache.shards import shard_tensors, with_names
from redi.data.datasets import Dataset
from redi.models.codec import JointCodec
from redi.runtime.atomic import atomic_file, save_tensors, write_json
from redi.runtime.checksums import sha256
from redi.runtime.paths import local_path
from redi.runtime.shared_work import SharedJob
from redi.runtime.spelling import few


def write_cache(
    folder: Path, codec: JointCodec, dataset: Dataset, *, batch_size: int = 256, rows_per_shard: int = 4096,
    mirror: bool = False, rank: int = 0, world_size: int = 1,
) -> Cache:  # fmt: skip
    """Encode every image into a cache, or open an existing one; the folder appears when the cache is complete.

    An interrupted call leaves its finished shards in '.<name>.work' in the same parent folder, and the next call
    resumes from them. With `mirror`, every image is also encoded mirrored left to right.

    Raises ValueError for labels outside [0, num_classes) and for NaN or infinite values, OSError for a full disk.
    """
    folder = local_path(folder)
    if not folder.exists():
        if not len(dataset):
            raise ValueError("the data set has no images to encode: check its path and split")
        low, high = int(dataset.labels.min()), int(dataset.labels.max())
        if low < 0 or high >= dataset.num_classes:
            name = f"{type(dataset).__name__}.num_classes = {dataset.num_classes}"
            raise ValueError(f"labels run from {low} to {high}, but {name}: raise num_classes or correct the labels")
        codec.load()
        starts = range(0, len(dataset), rows_per_shard)
        shards = [range(start, min(start + rows_per_shard, len(dataset))) for start in starts]
        job = shard_job(folder, shards)
        job.run(
            do=lambda index: _encode(job, index, shards[index], codec, dataset, batch_size, mirror),
            finish=lambda records: _finish(job, records, folder, codec, dataset, mirror),
            finished=folder.exists, rank=rank, world_size=world_size, desc="encoding",
        )  # fmt: skip
    return Cache(folder).note(dataset)


def shard_job(folder: Path, shards: Sequence[range]) -> SharedJob:
    """Return the job that encodes these ranges of images into the shards of a cache at `folder`."""

    def counts(index: int, record: dict) -> bool:
        return (record["first"], record["rows"]) == (shards[index].start, len(shards[index]))

    return SharedJob(folder.with_name(f".{folder.name}.work"), [len(rows) for rows in shards], "shard", counts)


def _encode(
    job: SharedJob, index: int, positions: range, codec: JointCodec, dataset: Dataset, batch_size: int, mirror: bool
) -> None:
    rows: dict[str, Tensor] = {}
    for start in range(0, len(positions), batch_size):
        batch = _batch(codec, dataset, positions[start : start + batch_size], mirror)
        num_images = len(batch["labels"])
        if start == 0:
            row_bytes = sum(tensor.nbytes for tensor in batch.values()) / num_images
            job.require_space(row_bytes, "choose another prepare.cache_dir or $REDI_CACHE")
            rows = {name: tensor.new_empty(len(positions), *tensor.shape[1:]) for name, tensor in batch.items()}
        for name, tensor in batch.items():
            rows[name][start : start + num_images] = tensor
        job.count(index, start + num_images)
    facts = {"first": positions.start, "rows": len(positions), "tensors": shard_tensors(rows)}
    job.store(index, {"shards": with_names(rows, [dataset.names[position] for position in positions])}, facts)


def _batch(codec: JointCodec, dataset: Dataset, positions: Sequence[int], mirror: bool) -> dict[str, Tensor]:
    batch, names = dataset.batch(positions), [dataset.names[position] for position in positions]
    images, rows = batch["images"].to(codec.device), {"labels": batch["labels"]}
    for prefix, side in {"": images, MIRRORED: images.flip(-1)}.items() if mirror else [("", images)]:
        for name, tensor in codec.precompute(side).items():
            check_encoded(tensor, _source(codec, name), names)
            rows[prefix + name] = tensor.cpu()
    return rows


def _finish(
    job: SharedJob, records: list[dict], folder: Path, codec: JointCodec, dataset: Dataset, mirror: bool
) -> None:
    """Write the manifest and the codec's fitted state to the folder of the shards, and move it into place."""
    shards = [
        {"file": job.path("shards", index).name, "rows": record["rows"], **record["files"]["shards"]}
        for index, record in enumerate(records)
    ]
    manifest = {
        "format": FORMAT,
        "dataset": dataset.provenance(),
        "dataset_fingerprint": dataset.fingerprint(),
        "dataset_content_fingerprint": dataset.content_fingerprint(),
        "num_classes": dataset.num_classes,
        "image_size": dataset.image_size,
        "codec": codec.cache_provenance(),
        "cache_fingerprint": codec.cache_fingerprint(),
        "code": code_of(codec),
        "mirrored": mirror,
        "tensors": records[0]["tensors"],
        "rows": len(dataset),
        "shards": shards,
        "versions": {"redi": redi.__version__, "torch": torch.__version__}
        | {name: version(name) for name in ("timm", "diffusers")},
    }
    if learned := codec.learned_state(for_cache=True):  # a stream needs nothing but a copy of this folder
        with atomic_file(job.path("shards") / LEARNED) as temporary:
            save_tensors(temporary, {name: tensor.clone() for name, tensor in learned.items()})
            manifest["learned"] = {"bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
    write_json(job.path("shards") / MANIFEST, manifest | {"sha256": manifest_sha256(manifest)})
    job.assemble("shards", folder, {MANIFEST} | ({LEARNED} if learned else set()))


def check_encoded(tensor: Tensor, what: str, names: Sequence[str]) -> None:
    """Raise ValueError, naming the images (one per row), if the tensor has NaN or infinite values."""
    if not tensor.is_floating_point() or bool((finite := tensor.isfinite()).all()):
        return
    bad = [name for name, ok in zip(names, finite.flatten(1).all(dim=1).tolist(), strict=True) if not ok]
    limit = f" ({tensor.dtype} ends at {torch.finfo(tensor.dtype).max:,.0f})" if tensor.dtype == torch.float16 else ""
    raise ValueError(
        f"NaN or infinite values in {what}{limit} for {len(bad)} of the {len(names)} images of a batch: {few(bad, 5)}. "
        "Check these images, and the network's weights and precision"
    )


def _source(codec: JointCodec, name: str) -> str:
    if name == "image":
        return f"the moments ('image') of {type(codec.autoencoder).__name__}"
    if name in codec.alignments:
        return f"the features ({name!r}) of {type(codec.alignments[name]).__name__}"
    encoder, reducer = codec.representations[name].encoder, codec.representations[name].reducer
    return f"the features ({name!r}) of {type(encoder).__name__}, reduced by {type(reducer).__name__}"
