"""Fits of encoders and reducers, made once and shared by all processes and runs."""

import contextlib
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from redi.core.registry import identity
from redi.data.cache.write import check_encoded
from redi.data.datasets import Dataset
from redi.models.encoders import Encoder
from redi.models.reducers import Reducer
from redi.models.reducers.linear import LinearReducer
from redi.models.reducers.moments import Moments
from redi.runtime.artefact import load_artefact, save_artefact
from redi.runtime.atomic import stamp
from redi.runtime.checksums import BrokenArtefact, json_sha256
from redi.runtime.progress import progress
from redi.runtime.shared_work import complete

log = logging.getLogger(__name__)

BLOCK = 1024  # images whose moments are summed together: the unit that is divided over processes and kept


def fit_or_restore(folder: Path, module: nn.Module, key: dict, fit: Callable[[], object]) -> None:
    """Loads the module's state from `folder` where the same fit was made before, else fits and stores it; again, where
    what is stored is damaged.

    Of several processes that ask for the same fit, one makes it and the others wait.
    """
    path = _place(folder, module, key)

    def make() -> None:
        log.info("fitting %s", type(module).__name__)
        fit()
        record = {"key": key | {"code": identity(module)}, "provenance": module.provenance()}
        save_artefact(path, {"state": module.state_dict()}, record, shared=True)

    before = stamp(path)
    tensors, _ = _stored(path) or _made(path, before, make)
    module.load_state_dict(tensors["state"])


def fit_reducer(
    folder: Path,
    reducer: Reducer,
    encoder: Encoder,
    dataset: Dataset,
    *,
    num_images: int,
    seed: int,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """As `fit_or_restore`, on the features of a seeded sample of the images.

    A reducer that needs their moments alone is fitted by all processes together: the sample is cut into blocks of
    1,024 images, whose moments are stored one by one and merged in the order of the blocks. So the fit is bit-equal
    whatever the number of processes, and an interrupted one goes on. Other reducers are fitted by one process.

    The folder of the fit is one that the argument `path` of a reducer can point to.
    """
    sample = {"num_images": min(num_images, len(dataset)), "seed": seed}
    made_on = {"encoder": encoder.provenance(), "sample": sample, "dataset": dataset.fingerprint()}
    path = _place(folder, reducer, made_on | {"fit": reducer.fit_settings()})
    positions = sample_positions(len(dataset), **sample)
    by_moments = isinstance(reducer, LinearReducer) and type(reducer).fit is LinearReducer.fit
    starts = range(0, len(positions), BLOCK) if by_moments else ()
    blocks = {f"block-{i:05d}": positions[start : start + BLOCK] for i, start in enumerate(starts)}

    def add_up(block: str) -> None:
        moments = Moments()
        for part in features.parts(blocks[block]):
            # The argument of a call and no variable: it is freed before the encoder makes the next one.
            moments.add(features.of(part))
        features.check()
        save_artefact(work / block, {"moments": moments.state()}, {"num_images": len(blocks[block])}, shared=True)

    def finish() -> None:
        if not by_moments:
            reducer.fit(map(features.of, features.parts(positions)))
            features.check()
        elif (moments := _merged([work / block for block in blocks])) is None:
            return  # `complete` has the damaged blocks added up again
        else:
            reducer.solve(moments)
        reducer.record_fit(**made_on)
        reducer.save(path)

    work, before = _work(path), stamp(path)
    if (stored := _stored(path)) is None:
        log.info("fitting %s", type(reducer).__name__)
        encoder.load()
        with progress(total=len(positions), desc="features for the reducer", unit="img", disable=rank > 0) as bar:
            features = _Features(encoder, reducer, dataset, batch_size, device, bar)
            division = {"is_done": lambda block: (work / block).exists(), "rank": rank, "world_size": world_size}
            stored = _made(path, before, finish, parts=list(blocks), do=add_up, **division)
    tensors, record = stored
    reducer.to(device)
    reducer.take_over(tensors["state"], record["fitted_on"], str(path))


class _Features:
    """Batches of features, looked through for what is not finite: at once, or on a GPU every 1,024 images, for to look
    is to wait for it, and meanwhile the next images can be read."""

    def __init__(
        self, encoder: Encoder, reducer: Reducer, dataset: Dataset, batch_size: int, device: torch.device, bar: tqdm
    ):
        self.encoder, self.reducer, self.dataset = encoder, reducer, dataset
        self.batch_size, self.device, self.bar = batch_size, device, bar
        self.largest: list[Tensor] = []  # (N, 1) of each batch not yet looked at: the largest magnitude in an image
        self.names: list[str] = []

    def parts(self, chosen: np.ndarray) -> list[np.ndarray]:
        return [chosen[start : start + self.batch_size] for start in range(0, len(chosen), self.batch_size)]

    def of(self, part: np.ndarray) -> Tensor:
        """Positions (N,) -> features (N, E, h, w)."""
        images = self.dataset.batch(part)["images"]
        if self.device.type == "cuda":
            images = images.pin_memory()
        found = self.encoder(images.to(self.device, non_blocking=True))
        self.reducer.check_width(found.shape[1])
        self.largest.append(torch.linalg.vector_norm(found, torch.inf, dim=(1, 2, 3))[:, None])  # NaN where one is
        self.names += [self.dataset.names[position] for position in part]
        if not found.is_cuda or len(self.names) >= BLOCK:
            self.check()
        self.bar.update(len(part))
        return found

    def check(self) -> None:
        """Raises ValueError naming the images whose features are not finite, of all since the last call."""
        if self.names:
            largest, names = torch.cat(self.largest), self.names
            self.largest, self.names = [], []
            check_encoded(largest, f"the features of {type(self.encoder).__name__}", names)


def sample_positions(num_rows: int, num_images: int, seed: int) -> np.ndarray:
    """Exactly `num_images` different positions below `num_rows`, drawn from the seed, sorted."""
    return np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(num_rows)[:num_images])


def _place(folder: Path, module: nn.Module, key: dict) -> Path:
    name = type(module).__name__
    digest = json_sha256(key | {"code": identity(module)})
    return folder / f"{name}-{digest[:16]}"


def _work(path: Path) -> Path:
    return path.with_name(f".{path.name}.work")


def _stored(path: Path) -> tuple[dict, dict] | None:
    """A fit that was made before, and its record; None where there is none, or a damaged one, which is then said."""
    if not path.exists():
        return None
    try:
        found = load_artefact(path)
    except BrokenArtefact as error:
        log.warning("fitted again, for what was stored is damaged: %s", error)
        return None
    log.info("%s restored from %s", path.name.split("-")[0], path)
    return found


def _made(
    path: Path, refused: tuple | None, make: Callable[[], None], parts: Sequence[str] = (), **division
) -> tuple[dict, dict]:
    """The same, made by one of all processes that ask for it; `refused`: the stamp of a damaged one to be replaced."""

    def finish() -> None:
        if refused is not None and stamp(path) == refused:
            shutil.rmtree(path)
        make()

    complete(_work(path), parts, finished=lambda: stamp(path) not in (None, refused), finish=finish, **division)
    return load_artefact(path)


def _merged(folders: Sequence[Path]) -> Moments | None:
    """The moments of all blocks; None where some are damaged, and those are deleted."""
    total, damaged = Moments(), []
    for folder in folders:
        try:
            total.merge(Moments.from_state(load_artefact(folder)[0]["moments"]))
        except ValueError as error:  # also BrokenArtefact
            log.warning("adding up again what was damaged: %s", error)
            damaged.append(folder)
    for folder in damaged:
        with contextlib.suppress(FileNotFoundError):  # another may have found the same
            shutil.rmtree(folder)
    return None if damaged else total
