"""Before training: fit what learns from data, and cache what the networks compute."""

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
from torch import nn

from redi.core.artefact import BrokenArtefact, load_artefact, save_artefact
from redi.core.codec import JointCodec
from redi.core.progress import progress
from redi.core.registry import configurable, identity
from redi.data.cache import Cache, write_cache
from redi.data.datasets import Dataset

log = logging.getLogger(__name__)


@configurable(runtime=("codec", "dataset"))
def prepare(
    *,
    codec: JointCodec,
    dataset: Dataset,
    cache_dir: str | Path | None = None,
    cache: bool = True,
    num_fit_images: int = 76_800,
    seed: int = 0,
    batch_size: int = 256,
) -> Dataset | Cache:
    """Makes the codec ready for this data set, and the data set ready for the trainer.

    Encoders and reducers that learn from data are fitted in place, or restored where the same fit was made
    before; then every image is encoded once into a cache. Nothing is done twice: all results lie in
    `cache_dir` under a hash of what they depend on.

    Args:
        cache_dir: default: $REDI_CACHE, or ~/.cache/redi.
        cache: False trains from images, running the encoders in every step.
        num_fit_images: at most so many images, drawn from `seed`, to fit reducers on (paper, section 3.4: 76,800).
        batch_size: images per pass through the encoders.

    Returns:
        What `train` takes as `dataset`.
    """
    cache_dir, data = cache_folder(cache_dir), dataset.fingerprint()
    for representation in codec.representations.values():
        encoder, reducer = representation.encoder, representation.reducer
        if not encoder.fitted:
            key = {"fit": encoder.fit_settings(), "dataset": data}
            fit_or_restore(cache_dir / "encoders", encoder, key, lambda e=encoder: e.fit(dataset))
        if not reducer.fitted:
            sample = {"num_images": min(num_fit_images, len(dataset)), "seed": seed}
            key = {"fit": reducer.fit_settings(), "encoder": encoder.provenance(), "sample": sample}
            key["dataset"] = data
            features = _sampled_features(encoder, dataset, device=codec.device, batch_size=batch_size, **sample)
            fit_or_restore(cache_dir / "reducers", reducer, key, lambda r=reducer, f=features: r.fit(f))
    if not cache:
        return dataset
    parts = [codec.autoencoder, *codec.representations.values()]
    code = [identity(part) for each in parts for part in (each, *each.children())]
    key = hashlib.sha256(json.dumps([codec.fingerprint(), code], sort_keys=True).encode()).hexdigest()
    folder = cache_dir / "encoded" / f"{type(dataset).__name__}-{data[:12]}-{key[:12]}"
    if folder.exists():
        log.info("using the cache %s", folder)
        return Cache(folder)
    log.info("encoding %d images into %s", len(dataset), folder)
    return write_cache(folder, codec, dataset, batch_size=batch_size)


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Where fits and encoded images lie: as given, else $REDI_CACHE, else ~/.cache/redi."""
    return Path(cache_dir or os.environ.get("REDI_CACHE") or "~/.cache/redi").expanduser()


def fit_or_restore(folder: Path, module: nn.Module, key: dict, fit) -> None:
    """Loads the module's state from `folder` where the same fit was made before, else fits and stores it."""
    name = type(module).__name__
    key = key | {"code": identity(module)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = folder / f"{name}-{digest[:16]}"
    if path.exists():
        try:
            tensors, _ = load_artefact(path)
        except BrokenArtefact as error:
            raise BrokenArtefact(f"{error}; delete {path} to fit it again") from None
        module.load_state_dict(tensors["state"])
        log.info("%s restored from %s", name, path)
    else:
        log.info("fitting %s", name)
        fit()
        record = {"key": key, "provenance": module.provenance()}
        save_artefact(path, {"state": module.state_dict()}, record, shared=True)


def _sampled_features(encoder, dataset: Dataset, *, device, num_images: int, seed: int, batch_size: int):
    """Batches of features (N, E, h, w) of a seeded sample of the images, read in the order of the data set."""
    sample = np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(len(dataset))[:num_images])
    for start in progress(range(0, len(sample), batch_size), desc="features for the reducer"):
        yield encoder(dataset.batch(sample[start : start + batch_size])["images"].to(device))
