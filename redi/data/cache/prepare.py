"""Prepare a data set for training: fit encoders and reducers, and cache the encoded images."""

import copy
import logging
import math
import os
from pathlib import Path

from redi.core.registry import configurable
from redi.data.cache.cache import FORMAT, Cache, code_of
from redi.data.cache.fits import fit_encoder, fit_reducer, fit_statistics
from redi.data.cache.stream import WINDOW, CacheStream
from redi.data.cache.verify import verify_cache
from redi.data.cache.write import write_cache
from redi.data.datasets import Dataset
from redi.data.storage.contents import same_images
from redi.models.codec import JointCodec
from redi.runtime.checksums import json_sha256
from redi.runtime.distributed import process_rank
from redi.runtime.paths import cache_folder
from redi.runtime.ranges import SEED, check_number

log = logging.getLogger(__name__)


@configurable(
    runtime=("codec", "dataset", "rank", "world_size"), trains=True,
    harmless=("cache_dir", "cache_url", "local_gib", "batch_size", "rows_per_shard", "verify", "check_statistics"),
)  # fmt: skip
def prepare(
    *,
    codec: JointCodec,
    dataset: Dataset | None,
    cache_dir: str | Path | None = None,
    cache: bool = True,
    cache_url: str | None = None,
    local_gib: float = 32.0,
    window_images: int = WINDOW,
    mirror: bool = False,
    num_fit_images: int = 76_800,
    seed: int = 0,
    batch_size: int = 256,
    rows_per_shard: int = 4096,
    verify: bool = True,
    check_statistics: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
) -> Dataset | Cache | CacheStream:
    """Fit the codec to the data set and encode every image; return the data set or cache to pass to `train`.

    Encoders, reducers and `LatentStatistics` that learn from data are fitted in place. All results are stored in
    `cache_dir` under a hash of the settings that affect them, and reused by later runs.

    Several processes, on one or many machines, share the work if they call this function with the same arguments and a
    `cache_dir` on a shared file system (docs/cache.md). Each process returns when the cache is complete.

    Args:
        cache_dir: folder of the cache; default: $REDI_CACHE, or ~/.cache/redi.
        cache: False trains from images and runs the encoders in every step.
        cache_url: URL of a cache folder copied to object storage, which is streamed (docs/cache.md). Nothing is encoded
            or fitted, and `dataset` may be None.
        local_gib: the maximum size, in GiB, of streamed shards in `cache_dir` at a time.
        window_images: the number of images of a streamed cache that are shuffled together. It changes the order.
        mirror: train on every image or its mirror image at random. The mirrored images are encoded, too.
        num_fit_images: the maximum number of images, drawn from `seed`, to fit reducers on (paper, sec. 3.4: 76,800).
        rows_per_shard: images per file of the cache. A file is computed by one process, and lost if that is killed.
        verify: compare the SHA-256 of every shard of an existing cache, and encode damaged shards again. All processes
            together read the whole cache, at up to 1.2 GiB/s per core.
        check_statistics: log how far the `LatentStatistics` of the autoencoder are off for 1,024 images of the data.
        rank, world_size: of this process; default: from the environment of torchrun or Slurm, else 0 and 1.

    Raises ValueError if the networks return NaN or infinite values, a reducer was fitted to another encoder, or the
    cache at `cache_url` is damaged or belongs to another codec or data set.
    """
    counts = {"num_fit_images": num_fit_images, "batch_size": batch_size, "rows_per_shard": rows_per_shard}
    for name, count in (counts | {"window_images": window_images}).items():
        check_number(f"prepare.{name}", count)
    check_number("prepare.seed", seed, **SEED)
    if type(local_gib) not in (int, float) or not 0 < local_gib < math.inf:
        raise ValueError(f"prepare.local_gib = {local_gib!r} must be a number greater than 0")
    cache_dir = cache_folder(cache_dir)
    if cache_url is not None:
        limits = {"max_bytes": int(local_gib * 2**30), "window": window_images}
        stream = _check_stream(CacheStream(cache_url, folder=cache_dir / "streamed", **limits), codec, dataset, mirror)
        fit_statistics(cache_dir / "statistics", codec, stream, check=check_statistics)
        return stream
    if dataset is None:
        raise ValueError("no data set: pass dataset= (train.dataset), or prepare.cache_url")
    codec.for_image_size(dataset.image_size)
    ranks = dict(zip(("rank", "world_size"), process_rank(rank, world_size), strict=True))
    for encoder in (*(r.encoder for r in codec.representations.values()), *codec.alignments.values()):
        if not encoder.fitted:
            fit_encoder(cache_dir / "encoders", encoder, dataset)
    provenances = [encoder.provenance() for encoder in codec.alignments.values()]
    if any(provenance in provenances[:number] for number, provenance in enumerate(provenances)):
        raise ValueError(f"JointCodec.alignment: two of {', '.join(codec.alignments)} are the same encoder: remove one")
    for representation in codec.representations.values():
        encoder, reducer = representation.encoder, representation.reducer
        if not reducer.fitted:
            fit_reducer(
                cache_dir / "reducers", reducer, encoder, dataset, num_images=num_fit_images, seed=seed,
                batch_size=batch_size, device=codec.device, vector=representation.vector, **ranks,
            )  # fmt: skip
        reducer.check_encoder(encoder.provenance())
    if not cache:
        if mirror != dataset.mirrored:
            dataset = copy.copy(dataset)
            dataset.mirrored = mirror
        fit_statistics(cache_dir / "statistics", codec, dataset, check=check_statistics)
        return dataset
    digest = json_sha256([FORMAT, codec.cache_fingerprint(), code_of(codec)])
    name = f"{type(dataset).__name__}-{dataset.fingerprint()[:12]}-{digest[:12]}" + ("-mirrored" if mirror else "")
    folder = cache_dir / "encoded" / name
    if verify and folder.exists() and os.access(folder.parent, os.W_OK):
        verify_cache(folder, **ranks)
    elif verify and folder.exists():
        log.warning("checksums of the cache %s are not verified, because its folder is not writable", folder)
    log.info("using the cache %s" if folder.exists() else "encoding images into the cache %s", folder)
    sizes = {"batch_size": batch_size, "rows_per_shard": rows_per_shard}
    encoded = write_cache(folder, codec, dataset, mirror=mirror, **sizes, **ranks)
    fit_statistics(cache_dir / "statistics", codec, encoded, check=check_statistics)
    return encoded


def _check_stream(stream: CacheStream, codec: JointCodec, dataset: Dataset | None, mirror: bool) -> CacheStream:
    """Check that the stream fits the codec and the data set; load the codec's fitted state from it if necessary."""
    if mirror != stream.mirrored:
        bindings = f"prepare.mirror = {stream.mirrored}, not {mirror}"
        raise ValueError(f"{stream.where} was computed with {bindings}: set prepare.mirror = {stream.mirrored}")
    if dataset is not None and not same_images(dataset, stream.fingerprint(), stream.content_fingerprint()):
        raise ValueError(
            f"{stream.where} was not computed from the images of train.dataset: leave train.dataset unbound to train "
            "without images, or leave prepare.cache_url unset to encode these images"
        )
    if not codec.can_precompute:
        codec.load_learned_state(stream.learned_state(), for_cache=True)
    stream.check(codec)
    log.info("streaming the cache %s: %d images in %d shards", stream.where, len(stream), len(stream.blocks.starts) - 1)
    return stream if dataset is None else stream.note(dataset)
