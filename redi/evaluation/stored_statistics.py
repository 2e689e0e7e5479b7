"""Means and covariances that others computed: a reference for distances without its images."""

import struct
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from redi.core.registry import configurable
from redi.data.datasets import Dataset, datasets
from redi.evaluation.metrics.features import Features
from redi.evaluation.metrics.frechet import Gaussian
from redi.models.encoders import Encoder
from redi.runtime.checksums import sha256

KEYS = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
# What zipfile, zlib and NumPy raise on damaged files; NotImplementedError and RecursionError are RuntimeErrors.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, ValueError, RuntimeError, OverflowError)
UNREADABLE += (MemoryError, struct.error, TypeError, SyntaxError, tokenize.TokenError)
MAX_WIDTH = 2**14  # a header that claims more is not believed: the array would take 2 GiB


@configurable
class StoredStatistics:
    """The mean `mu` (P,) and covariance `sigma` (P, P) of a reference's features, from an `.npz` file.

    ADM's reference batches hold them (with `mu_s` and `sigma_s` of the spatial features) beside images; the statistics
    of clean-fid, EDM and pytorch-fid are such files too. Nothing in the file says which network made them.

    Args:
        path: the file. No pickle is ever read from it.
        network: the ending of the metrics it serves: 'clean', 'legacy_tensorflow' (ADM's and EDM's), 'legacy_pytorch',
            'dinov2', ... It is used for distances in that network alone.
        images: a data set, for the metrics that need images, and for other networks; with ADM's batch:
            `@datasets.AdmBatch()` of the same file. Default: those metrics are left out.
        image_size: the side of the images that they were made of, where it is known; samples of another size are then
            refused. Where the file holds `arr_0`, its size is known.

    Raises:
        ValueError: no such file, damaged, another kind of file, missing or impossible arrays.
    """

    def __init__(self, *, path: str | Path, network: str, images: Dataset | None = None, image_size: int | None = None):
        self.path, self.network, self.images = Path(path).expanduser(), network, images
        if images is not None:
            datasets.check(images, "StoredStatistics.images")
        if not self.path.is_file():
            raise ValueError(f"StoredStatistics.path = {str(path)!r} is no file")
        with _explained(self.path), zipfile.ZipFile(self.path) as archive:
            names = archive.namelist()
            if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
                raise ValueError(f"not each of its members is an array of its own: {names[:8]}")
            self.shapes = {name.removesuffix(".npy"): _shape(archive, name) for name in names}
        if missing := {"mu", "sigma"} - set(self.shapes):
            held = ", ".join(self.shapes) or "nothing"
            raise ValueError(f"{self.path} holds no {' and no '.join(sorted(missing))}, but {held}: no statistics")
        self.gaussians = {kind: self._read(*keys) for kind, keys in KEYS.items() if keys[0] in self.shapes}
        batch = self.shapes.get("arr_0", ())
        found = batch[1] if len(batch) == 4 else None
        if None not in (found, image_size) and found != image_size:
            raise ValueError(f"StoredStatistics.image_size = {image_size}, but arr_0 of {self.path} is {batch}")
        self.image_size = found or image_size

    def fits(self, network: Encoder) -> bool:
        """Whether they are of this network."""
        return ending(network) == self.network

    @cached_property
    def _sha256(self) -> str:
        return sha256(self.path)

    def fingerprint(self) -> str:
        """The SHA-256 of the file."""
        return self._sha256

    def provenance(self) -> dict:
        """What they are, as JSON."""
        known = {"statistics": self.path.name, "network": self.network, "image_size": self.image_size}
        return known | {"width": {kind: len(gaussian.mean) for kind, gaussian in self.gaussians.items()}}

    def _read(self, mean_key: str, covariance_key: str) -> Gaussian:
        for key in (mean_key, covariance_key):
            if key not in self.shapes:
                raise ValueError(f"{self.path} holds {mean_key} but no {covariance_key}")
        shape = self.shapes[mean_key]
        if len(shape) != 1 or not 1 <= shape[0] <= MAX_WIDTH or self.shapes[covariance_key] != shape * 2:
            given = f"{mean_key} {shape} and {covariance_key} {self.shapes[covariance_key]}"
            raise ValueError(f"{self.path} holds {given}: they are (P,) and (P, P), with P <= {MAX_WIDTH}")
        with _explained(self.path), np.load(self.path, allow_pickle=False) as file:
            mean, covariance = (np.asarray(file[key], dtype=np.float64) for key in (mean_key, covariance_key))
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError(f"{self.path}: {mean_key} or {covariance_key} holds NaN or infinite values")
        largest = np.abs(covariance).max()
        if np.abs(covariance - covariance.T).max() > 1e-5 * largest or covariance.diagonal().min() < -1e-5 * largest:
            raise ValueError(f"{self.path}: {covariance_key} is no covariance: not symmetric, or a variance below 0")
        return Gaussian(torch.from_numpy(mean), torch.from_numpy((covariance + covariance.T) / 2))


def images_of(reference: Dataset | StoredStatistics | None) -> Dataset | None:
    """The images that a reference holds, if any."""
    return reference.images if isinstance(reference, StoredStatistics) else reference


def save_statistics(path: str | Path, features: Features) -> None:
    """Writes `mu` and `sigma` of features (N >= 2), and `mu_s` and `sigma_s` of spatial ones, as `.npz`."""
    arrays, path = {}, Path(path)
    for kind, (mean_key, covariance_key) in KEYS.items():
        if kind in features.tensors:
            gaussian = Gaussian.of(features.tensors[kind])
            arrays |= {mean_key: gaussian.mean.numpy(), covariance_key: gaussian.covariance.numpy()}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with open(temporary, "wb") as file:  # given a name, NumPy would add .npz to it
            np.savez(file, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def ending(network: Encoder) -> str:
    """How the names of a network's metrics end: 'clean', 'dinov2', 'domain_network'."""
    return network.metric_name("precision").removeprefix("precision_")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what NumPy and zipfile raise on a damaged file into a ValueError that names it."""
    try:
        yield
    except UNREADABLE as error:
        raise ValueError(f"{path} is no intact .npz file of plain arrays: {str(error)[:300]}") from None


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """The shape of an array, without its data. Raises ValueError where it does not hold numbers."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {dtype}, not numbers")
    return shape
