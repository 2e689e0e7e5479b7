"""Before training: fit what learns from data, and cache what the networks compute."""

import copy
import logging
import math
import os
from pathlib import Path

from redi.core.registry import configurable
from redi.data.cache.cache import FORMAT, Cache, code_of
from redi.data.cache.fits import fit_encoder, fit_reducer
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
    harmless=("cache_dir", "cache_url", "local_gib", "batch_size", "rows_per_shard", "verify"),
)
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
    rank: int | None = None,
    world_size: int | None = None,
) -> Dataset | Cache | CacheStream:
    """Make the codec ready for this data set -> what `train` takes as `dataset` (its `mirrored` is `mirror`).

    Encoders and reducers that learn from data are fitted in place, and every image is encoded once into a cache.
    Nothing is done twice: all results lie in `cache_dir` under a hash of what they depend on.

    Several processes, on one machine or many, share the work when they call this with the same arguments and one
    `cache_dir` on a file system that all of them see (docs/cache.md); each returns when all is there.

    Args:
        cache_dir: default: $REDI_CACHE, or ~/.cache/redi.
        cache: False trains from images, running the encoders in every step.
        cache_url: take the cache from object storage, where a copy of its folder lies (docs/cache.md); nothing is
            encoded or fitted, and `dataset` may be None.
        local_gib: at most so much of it lies in `cache_dir` at a time.
        window_images: so many of its images are mixed with one another at a time; another number is another order.
        mirror: train on each image or its mirror image, by chance; the networks see the mirrored image itself.
        num_fit_images: at most so many images, drawn from `seed`, to fit reducers on (paper, section 3.4: 76,800).
        rows_per_shard: images in one file of the cache: what is divided over processes, and lost when one is killed.
        verify: compare the SHA-256 of every shard of a cache that was there already, and encode damaged ones again:
            all processes together read all of it, at 1.2 GiB a second and core at most.
        rank, world_size: this process's place; default: torchrun's or Slurm's environment, else 0 of 1.

    Raises:
        ValueError: NaN or infinite values in what the networks give, a reducer of another encoder, a cache at
            `cache_url` that is damaged, or not of this codec and data set.
    """
    counts = {"num_fit_images": num_fit_images, "batch_size": batch_size, "rows_per_shard": rows_per_shard}
    for name, count in (counts | {"window_images": window_images}).items():
        check_number(f"prepare.{name}", count)
    check_number("prepare.seed", seed, **SEED)
    if type(local_gib) not in (int, float) or not 0 < local_gib < math.inf:
        raise ValueError(f"prepare.local_gib = {local_gib!r}: a number greater than 0 is needed")
    cache_dir = cache_folder(cache_dir)
    if cache_url is not None:
        room = {"max_bytes": int(local_gib * 2**30), "window": window_images}
        return _streamed(CacheStream(cache_url, folder=cache_dir / "streamed", **room), codec, dataset, mirror)
    if dataset is None:
        raise ValueError("no data set: pass dataset= (train.dataset), or prepare.cache_url")
    ranks = dict(zip(("rank", "world_size"), process_rank(rank, world_size), strict=True))
    pairs = [(representation.encoder, representation.reducer) for representation in codec.representations.values()]
    for encoder in (*(encoder for encoder, _ in pairs), codec.alignment):
        if encoder is not None and not encoder.fitted:
            fit_encoder(cache_dir / "encoders", encoder, dataset)
    for encoder, reducer in pairs:
        if not reducer.fitted:
            sample = {"num_images": num_fit_images, "seed": seed, "batch_size": batch_size}
            fit_reducer(cache_dir / "reducers", reducer, encoder, dataset, device=codec.device, **sample, **ranks)
        reducer.check_encoder(encoder.provenance())
    if not cache:
        if mirror != dataset.mirrored:
            dataset = copy.copy(dataset)
            dataset.mirrored = mirror
        return dataset
    digest = json_sha256([FORMAT, codec.cache_fingerprint(), code_of(codec)])
    name = f"{type(dataset).__name__}-{dataset.fingerprint()[:12]}-{digest[:12]}" + ("-mirrored" if mirror else "")
    folder = cache_dir / "encoded" / name
    if verify and folder.exists() and os.access(folder.parent, os.W_OK):
        verify_cache(folder, **ranks)
    elif verify and folder.exists():
        log.warning("%s is used without comparing checksums, because this user may not write there", folder)
    log.info("using the cache %s" if folder.exists() else "encoding into %s", folder)
    sizes = {"batch_size": batch_size, "rows_per_shard": rows_per_shard}
    return write_cache(folder, codec, dataset, mirror=mirror, **sizes, **ranks)


def _streamed(stream: CacheStream, codec: JointCodec, dataset: Dataset | None, mirror: bool) -> CacheStream:
    """The stream, once it is known to be of this codec, which is completed by what it had learned, and data set."""
    if mirror != stream.mirrored:
        raise ValueError(f"{stream.where} was made with prepare.mirror = {stream.mirrored}: set that, not {mirror}")
    if dataset is not None and not same_images(dataset, stream.fingerprint(), stream.content_fingerprint()):
        raise ValueError(
            f"{stream.where} was not made from the images of train.dataset: leave train.dataset unbound to train "
            "without images, or leave prepare.cache_url unset to encode these"
        )
    if not codec.fitted:
        codec.load_learned_state(stream.learned_state())
    stream.check(codec)
    log.info("streaming the cache %s: %d images in %d shards", stream.where, len(stream), len(stream.blocks.starts) - 1)
    return stream if dataset is None else stream.note(dataset)
