"""Stored means and covariances of features: a reference for distances without its images."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from redi.core.registry import configurable
from redi.data.datasets import Dataset, datasets
from redi.data.storage.npz import NpzArray, npz_entries
from redi.evaluation.metrics.frechet import Gaussian
from redi.models.encoders import Encoder
from redi.runtime.checksums import sha256
from redi.runtime.paths import local_path

KEYS = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
MAX_WIDTH = 2**14  # a covariance of this width takes 2 GiB


@configurable
class StoredStatistics:
    """The mean `mu` (P,) and covariance `sigma` (P, P) of a reference's features, from an `.npz` file.

    ADM's reference batches (with `mu_s` and `sigma_s` of the spatial features) and the statistics of clean-fid, EDM and
    pytorch-fid have this form. The file does not name its network.

    Args:
        path: the file. Pickled data are never read.
        network: the network that computed the statistics, as in the names of its metrics: 'clean', 'legacy_tensorflow'
            (ADM and EDM), 'legacy_pytorch', 'dinov2', ... Only distances in this network use the statistics.
        images: a data set for all other metrics, such as `@datasets.AdmBatch()` of the same file. Default: these
            metrics are not measured.
        image_size: side of the images in pixels; samples of another size raise an error. Default: that of `arr_0`.

    Raises ValueError: the file does not exist, is damaged or not an .npz file, or its arrays are missing or invalid.
    """

    def __init__(self, *, path: str | Path, network: str, images: Dataset | None = None, image_size: int | None = None):
        self.path, self.network, self.images = local_path(path), network, images
        if images is not None:
            datasets.check(images, "StoredStatistics.images")
        if not self.path.is_file():
            raise ValueError(f"StoredStatistics.path = {str(path)!r} is not a file: bind the path of an .npz file")
        entries = npz_entries(self.path, str(self.path))
        arrays = {name: NpzArray(self.path, entry, str(self.path)) for name, entry in entries.items()}
        if missing := {"mu", "sigma"} - set(arrays):
            names = ", ".join(arrays) or "no arrays"
            raise ValueError(f"{self.path} has {names}, but statistics need {' and '.join(sorted(missing))}")
        self.gaussians = {kind: self._read(arrays, *keys) for kind, keys in KEYS.items() if keys[0] in arrays}
        batch = arrays["arr_0"].shape if "arr_0" in arrays else ()
        side = batch[1] if len(batch) == 4 else None
        if None not in (side, image_size) and side != image_size:
            raise ValueError(f"StoredStatistics.image_size = {image_size}: must be {side}, as in arr_0 of {self.path}")
        self.image_size = side or image_size

    def fits(self, network: Encoder) -> bool:
        """Return whether the statistics are those of this network."""
        return ending(network) == self.network

    @cached_property
    def _sha256(self) -> str:
        return sha256(self.path)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file."""
        return self._sha256

    def provenance(self) -> dict:
        """Return the file name, network, image size and widths as a JSON record."""
        record = {"statistics": self.path.name, "network": self.network, "image_size": self.image_size}
        return record | {"width": {kind: len(gaussian.mean) for kind, gaussian in self.gaussians.items()}}

    def _read(self, arrays: dict[str, NpzArray], mean_key: str, covariance_key: str) -> Gaussian:
        if covariance_key not in arrays:
            raise ValueError(f"{self.path} has {mean_key} but not {covariance_key}: statistics need both")
        for key in (mean_key, covariance_key):
            if arrays[key].dtype.kind not in "fiub":
                raise ValueError(f"{self.path}: {key} holds {arrays[key].dtype}, not numbers")
        shape, square = arrays[mean_key].shape, arrays[covariance_key].shape
        if len(shape) != 1 or not 1 <= shape[0] <= MAX_WIDTH or square != shape * 2:
            what = f"{mean_key} {shape} and {covariance_key} {square}"
            raise ValueError(f"{self.path} has {what}: must be (P,) and (P, P) with P <= {MAX_WIDTH}")
        mean, covariance = (arrays[key].unpack().astype(np.float64) for key in (mean_key, covariance_key))
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError(f"{self.path}: {mean_key} or {covariance_key} holds NaN or infinite values")
        largest = np.abs(covariance).max()
        if np.abs(covariance - covariance.T).max() > 1e-5 * largest or covariance.diagonal().min() < -1e-5 * largest:
            raise ValueError(f"{self.path}: {covariance_key} is not symmetric or has a negative variance")
        return Gaussian(torch.from_numpy(mean), torch.from_numpy((covariance + covariance.T) / 2))


def images_of(reference: Dataset | StoredStatistics | None) -> Dataset | None:
    """Return the images of a reference, or None if it has none."""
    return reference.images if isinstance(reference, StoredStatistics) else reference


def ending(network: Encoder) -> str:
    """Return the suffix of a network's metrics: 'clean', 'dinov2', 'domain_network', ..."""
    return network.metric_name("precision").removeprefix("precision_")
