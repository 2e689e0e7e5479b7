"""Fits of encoders and reducers, made once and shared by all processes and runs."""

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
from redi.data.cache.write import check_encoded
from redi.data.datasets import Dataset
from redi.models.encoders import Encoder
from redi.models.reducers import Reducer
from redi.models.reducers.linear import LinearReducer
from redi.models.reducers.moments import Moments
from redi.runtime.artefact import load_tensors, save_artefact
from redi.runtime.checksums import json_sha256
from redi.runtime.progress import progress
from redi.runtime.shared_work import SharedJob, complete, load_or_create

log = logging.getLogger(__name__)

BLOCK = 1024  # images whose moments are summed together: the unit that is divided over processes and stored


def fit_encoder(folder: Path, encoder: Encoder, dataset: Dataset) -> None:
    """Load the encoder's state from `folder` where the same fit was made before; else, or where it is damaged, fit and
    store it: of several processes, one does, and the others wait.
    """
    key = {"fit": encoder.fit_settings(), "dataset": dataset.fingerprint()}
    path = _place(folder, encoder, key)

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
    device: torch.device, rank: int = 0, world_size: int = 1,
) -> None:  # fmt: skip
    """As `fit_encoder`, on the features of a seeded sample of the images.

    A reducer that needs only their moments is fitted by all processes together: those of each block of 1,024 images are
    stored, and merged in the order of the blocks. So the fit is bit-equal whatever the number of processes, and an
    interrupted one resumes. Other reducers are fitted by one process.

    The folder of the fit is one that the argument `path` of a reducer can point to.
    """
    sample = {"num_images": min(num_images, len(dataset)), "seed": seed}
    sources = {"encoder": encoder.provenance(), "sample": sample, "dataset": dataset.fingerprint()}
    path = _place(folder, reducer, sources | {"fit": reducer.fit_settings()})
    positions = sample_positions(len(dataset), **sample)
    by_moments = isinstance(reducer, LinearReducer) and type(reducer).fit is LinearReducer.fit
    blocks = [positions[i : i + BLOCK] for i in range(0, len(positions), BLOCK)] if by_moments else []
    job = SharedJob(_work(path), [len(block) for block in blocks], "block")
    desc, few = "features for the reducer", []  # few: of one image, to compare on

    def features(positions: np.ndarray) -> Iterator[Tensor]:
        batches = (positions[i : i + batch_size] for i in range(0, len(positions), batch_size))
        for batch in _features(encoder, reducer, dataset, batches, device):
            few[:] = [batch[:1].clone()]
            yield batch
            del batch

    def add_up(index: int) -> None:
        moments = Moments()
        for batch in features(blocks[index]):
            moments.add(batch)
            job.bar.update(len(batch))
            del batch  # freed before the encoder makes the next one
        job.store(index, {"moments": moments.state()})

    def finish(_: list[dict]) -> None:
        unfitted = copy.deepcopy(reducer)
        if not by_moments:
            reducer.fit(progress(features(positions), total=-(-len(positions) // batch_size), desc=desc, unit="batch"))
        else:
            total = Moments()
            for index in range(len(blocks)):
                total.merge(Moments.from_state(load_tensors(job.path("moments", index))))
            reducer.solve(total)
        check_restorable(reducer, unfitted, few[0] if few else next(features(positions[:1])))
        reducer.record_fit(**sources)
        reducer.save(path)

    def run(finished: Callable[[], bool]) -> None:
        log.info("fitting %s", type(reducer).__name__)
        encoder.load()
        job.run(do=add_up, finish=finish, finished=finished, rank=rank, world_size=world_size, desc=desc)

    tensors, record = load_or_create(path, "fitting", run)
    reducer.to(device)
    reducer.take_over(tensors["state"], record["fitted_on"], str(path))


def _features(
    encoder: Encoder, reducer: Reducer, dataset: Dataset, batches: Iterable[np.ndarray], device: torch.device
) -> Iterator[Tensor]:
    """Positions (N,) -> features (N, E, h, w), batch by batch. What is not finite is refused: at once, or on a GPU
    every 1,024 images, because looking waits for the GPU.
    """
    largest, names = [], []  # of what is not yet checked: (N, 1), the largest magnitude in an image; the images' names

    def check() -> None:
        if names:
            check_encoded(torch.cat(largest), f"the features of {type(encoder).__name__}", names)
            largest.clear(), names.clear()

    for positions in batches:
        images = dataset.batch(positions)["images"]
        if device.type == "cuda":
            images = images.pin_memory()
        features = check_maps(encoder(images.to(device, non_blocking=True)), f"features of {type(encoder).__name__}")
        reducer.check_width(features.shape[1])
        largest.append(torch.linalg.vector_norm(features, torch.inf, dim=(1, 2, 3))[:, None])  # NaN where one is
        names += [dataset.names[position] for position in positions]
        if not features.is_cuda or len(names) >= BLOCK:
            check()
        yield features
        del features
    check()


def check_restorable(fitted: nn.Module, unfitted: nn.Module, inputs: Tensor) -> None:
    """Raises ValueError unless the state of a fit makes a module that was never fitted give the same, bit for bit (on a
    GPU, whose kernels may differ, nearly): now, not when a checkpoint of a trained model cannot be opened.
    """
    name, state = type(fitted).__name__, fitted.state_dict()
    rule = "every tensor that fit sets must be a buffer or parameter that __init__ registers"
    fitted.load_state_dict(state)  # as the other, because the layout in memory may decide the last bit
    inputs = inputs.to(next(iter(fitted.state_dict().values()), inputs).device)
    expected = fitted(inputs)
    try:
        unfitted.load_state_dict(state)
        same = partial(torch.allclose, rtol=1e-3, atol=1e-3) if inputs.is_cuda else torch.equal
        restored = same(unfitted(inputs), expected)
    except Exception as error:  # a plug-in without its tensors fails in any way
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} cannot be restored from its state: {rule} ({reason})") from error
    if not restored:
        raise ValueError(f"{name} restored from its state gives other values than the one that was fitted: {rule}")


def sample_positions(num_rows: int, num_images: int, seed: int) -> np.ndarray:
    """Exactly `num_images` different positions below `num_rows`, drawn from the seed, sorted."""
    return np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(num_rows)[:num_images])


def _place(folder: Path, module: nn.Module, key: dict) -> Path:
    return folder / f"{type(module).__name__}-{json_sha256(key | {'code': identity(module)})[:16]}"


def _work(path: Path) -> Path:
    return path.with_name(f".{path.name}.work")
