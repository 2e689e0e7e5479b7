"""Fit encoders and reducers once, and share the fits between processes and runs."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from redi.core.inputs import check_maps
from redi.core.registry import identity
from redi.data.cache.cache import EncodedRows
from redi.data.cache.write import check_encoded
from redi.data.datasets import Dataset
from redi.models.autoencoders.statistics import LatentMoments
from redi.models.codec import JointCodec
from redi.models.encoders import Encoder, features_of
from redi.models.pretrained_network import networks_in
from redi.models.reducers import Reducer
from redi.models.reducers.linear import LinearReducer
from redi.models.reducers.moments import Moments
from redi.runtime.artefact import load_tensors, save_artefact
from redi.runtime.checksums import json_sha256
from redi.runtime.progress import progress
from redi.runtime.shared_work import SharedJob, complete, load_or_create

log = logging.getLogger(__name__)

BLOCK = 1024  # the number of images whose moments are summed, stored, and computed by one process


def fit_encoder(folder: Path, encoder: Encoder, dataset: Dataset) -> None:
    """Load an existing fit with the same settings from `folder`; otherwise one of the calling processes fits it."""
    key = {"fit": encoder.fit_settings(), "dataset": dataset.fingerprint()}
    path = _fit_folder(folder, encoder, key)

    def finish() -> None:
        log.info("fitting %s", type(encoder).__name__)
        unfitted = copy.deepcopy(encoder)
        encoder.fit(dataset)
        check_restorable(encoder, unfitted, dataset.batch([0])["images"])
        record = {"key": key | {"code": identity(encoder)}, "provenance": encoder.provenance()}
        save_artefact(path, {"state": encoder.state_dict()}, record)

    tensors, _ = load_or_create(path, "fitting", lambda done: complete(_work(path), finished=done, finish=finish))
    encoder.load_state_dict(tensors["state"])


def fit_reducer(
    folder: Path, reducer: Reducer, encoder: Encoder, dataset: Dataset, *, num_images: int, seed: int, batch_size: int,
    device: torch.device, vector: str | None = None, rank: int = 0, world_size: int = 1,
) -> None:  # fmt: skip
    """Load or fit a reducer like `fit_encoder`, on the features of a random sample of the images drawn from `seed`.

    A reducer that needs only the moments of the features is fitted by all processes together. The moments of each block
    of 1,024 images are stored and merged in the order of the blocks, so the fit is bit-equal for any number of
    processes, and an interrupted fit resumes. Other reducers are fitted by one process.

    The argument `path` of a reducer can point to the folder of the fit. `vector`: see `Representation`.
    """
    sample = {"num_images": min(num_images, len(dataset)), "seed": seed}
    encoder_provenance, fingerprint = encoder.provenance(), dataset.fingerprint()
    key = {"encoder": encoder_provenance, "sample": sample, "dataset": fingerprint, "fit": reducer.fit_settings()}
    key |= {"vector": vector} if vector else {}
    path = _fit_folder(folder, reducer, key)
    positions = sample_positions(len(dataset), **sample)
    linear = reducer if isinstance(reducer, LinearReducer) and type(reducer).fit is LinearReducer.fit else None
    blocks = [positions[i : i + BLOCK] for i in range(0, len(positions), BLOCK)] if linear is not None else []
    job = SharedJob(_work(path), [len(block) for block in blocks], "block")
    desc = "features for the reducer"
    test_features: list[Tensor] = []  # of one image, to compare the fitted and the restored reducer

    def features(positions: np.ndarray) -> Iterator[Tensor]:
        batches = (positions[i : i + batch_size] for i in range(0, len(positions), batch_size))
        for batch in _features(encoder, reducer, dataset, batches, device, vector):
            test_features[:] = [batch[:1].clone()]
            yield batch
            del batch

    def add_up(index: int) -> None:
        moments = Moments()
        for batch in features(blocks[index]):
            moments.add(batch)
            job.bar.update(len(batch))
            del batch  # free the memory before the encoder computes the next batch
        job.store(index, {"moments": moments.state()})

    def finish(_: list[dict]) -> None:
        unfitted = copy.deepcopy(reducer)
        if linear is None:
            reducer.fit(progress(features(positions), total=-(-len(positions) // batch_size), desc=desc, unit="batch"))
        else:
            total = Moments()
            for index in range(len(blocks)):
                total.merge(Moments.from_state(load_tensors(job.path("moments", index))))
            linear.solve(total)
        check_restorable(reducer, unfitted, test_features[0] if test_features else next(features(positions[:1])))
        reducer.record_fit(encoder=encoder_provenance, sample=sample, dataset=fingerprint)
        reducer.save(path)

    def run(finished: Callable[[], bool]) -> None:
        log.info("fitting %s", type(reducer).__name__)
        encoder.load()
        job.run(do=add_up, finish=finish, finished=finished, rank=rank, world_size=world_size, desc=desc)

    tensors, record = load_or_create(path, "fitting", run)
    reducer.to(device)
    reducer.take_over(tensors["state"], record["fitted_on"], str(path))


def fit_statistics(folder: Path, codec: JointCodec, data: Dataset | EncodedRows, *, check: bool = False) -> None:
    """Load or fit the codec's `LatentStatistics` like `fit_encoder`, on evenly spread images or rows of a cache.

    With `check`, log how far they are off for 1,024 of them. Raises ValueError if they do not fit the latents.
    """
    statistics = codec.statistics
    if statistics is None:
        if check:
            what = f"{type(codec.autoencoder).__name__} has no statistics"
            raise ValueError(f"prepare.check_statistics = True: {what}: unbind it, or bind statistics")
        return
    if not statistics.fitted:
        autoencoder = {"autoencoder": codec.autoencoder.provenance(), "precision": codec.precision}
        key = {"fit": statistics.fit_settings(), **autoencoder, "dataset": data.fingerprint()}
        path = _fit_folder(folder, statistics, key)

        def finish() -> None:
            log.info("fitting LatentStatistics on %d images", min(statistics.num_images, len(data)))
            statistics.fit(_latent_moments(codec, data, statistics.num_images))
            save_artefact(path, {"state": statistics.state_dict()}, {"key": key})

        tensors, _ = load_or_create(path, "fitting", lambda done: complete(_work(path), finished=done, finish=finish))
        statistics.load_state_dict(tensors["state"])
    statistics.load()
    codec.grid(data.image_size)  # checks the shape
    if check:
        errors = statistics.deviation(_latent_moments(codec, data, 1024))
        text = "the mean is off by up to %.3g std; the std is %.3g to %.3g times the stored one"
        log.info(f"LatentStatistics on up to 1,024 images: {text}", *errors)


@torch.no_grad()
def _latent_moments(codec: JointCodec, data: Dataset | EncodedRows, num_images: int) -> LatentMoments:
    assert codec.statistics is not None
    randn = partial(torch.randn, generator=torch.Generator(codec.device).manual_seed(0))
    with codec.statistics.collecting() as moments, networks_in(codec.precision):
        for batch in codec.sample_batches(data, num_images):
            stored = batch["image"] if "image" in batch else codec.autoencoder.moments(batch["images"])
            codec.autoencoder.latents(stored, randn)
    return moments


def _features(
    encoder: Encoder, reducer: Reducer, dataset: Dataset, batches: Iterable[np.ndarray], device: torch.device,
    vector: str | None,
) -> Iterator[Tensor]:  # fmt: skip
    """Compute features (N, E, h, w) of the images at each batch of positions (N,); refuse NaN and infinity."""
    maxima: list[Tensor] = []  # (N, 1): the largest magnitude in each image that is not checked yet
    names: list[str] = []  # of these images

    def check() -> None:
        if names:
            check_encoded(torch.cat(maxima), f"the features of {type(encoder).__name__}", names)
            maxima.clear()
            names.clear()

    for positions in batches:
        images = dataset.batch(positions)["images"]
        if device.type == "cuda":
            images = images.pin_memory()
        features = features_of(encoder, images.to(device, non_blocking=True), vector)
        check_maps(features, f"features of {type(encoder).__name__}")
        reducer.check_width(features.shape[1])
        maxima.append(torch.linalg.vector_norm(features, torch.inf, dim=(1, 2, 3))[:, None])  # NaN propagates
        names += [dataset.names[position] for position in positions]
        if not features.is_cuda or len(names) >= BLOCK:  # rarely on a GPU, because the check waits for it
            check()
        yield features
        del features
    check()


def check_restorable(fitted: nn.Module, unfitted: nn.Module, inputs: Tensor) -> None:
    """Raise ValueError if the state of `fitted`, which checkpoints store, does not reproduce its output."""
    name, state = type(fitted).__name__, fitted.state_dict()
    rule = "every tensor that fit sets must be a buffer or parameter that __init__ registers"
    fitted.load_state_dict(state)  # gives both modules the same memory layout, which may affect the last bit
    inputs = inputs.to(next(iter(fitted.state_dict().values()), inputs).device)
    expected = fitted(inputs)
    try:
        unfitted.load_state_dict(state)
        same = partial(torch.allclose, rtol=1e-3, atol=1e-3) if inputs.is_cuda else torch.equal
        restored = same(unfitted(inputs), expected)
    except Exception as error:  # a plug-in may raise anything
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} cannot be restored from its state: {rule} ({reason})") from error
    if not restored:
        raise ValueError(f"{name} restored from its state computes other values than the fitted one: {rule}")


def sample_positions(num_rows: int, num_images: int, seed: int) -> np.ndarray:
    """Draw `num_images` different positions in [0, num_rows) from the seed; return them sorted."""
    return np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(num_rows)[:num_images])


def _fit_folder(folder: Path, module: nn.Module, key: dict) -> Path:
    return folder / f"{type(module).__name__}-{json_sha256(key | {'code': identity(module)})[:16]}"


def _work(path: Path) -> Path:
    return path.with_name(f".{path.name}.work")
