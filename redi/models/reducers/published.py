"""Read the PCA statistics published with the paper's code (dino_pca_model.pth) without executing the pickle.

The file defines z = components ((f - mean) / std - pca_mean), a `LinearReducer` with the mean mean + std * pca_mean.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redi.runtime.checksums import sha256
from redi.runtime.paths import local_path
from redi.runtime.weights_files import Inert, check_tensors, read_weights_file

PUBLISHED_SHA256 = "60edf20f780c27cdb528af77a15ab41a82f32eadeb1cd97cc322f528e7edc13d"
# The encoder of the published file: DINOv2-B with registers. Other files of this format do not name their encoder.
PUBLISHED_ENCODER = {"timm_model": "vit_base_patch14_reg4_dinov2.lvd142m", "layers": [11], "resize": "released"}
VECTORS_PER_IMAGE = 256  # the grid of that encoder is 16 x 16
MAX_BYTES = 2**28  # the published file has 3.5 MB at 768 components; the size grows with the square of their number
INERT = (
    "sklearn.decomposition._pca.PCA", "numpy.ndarray", "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)  # fmt: skip


def read_published_pca(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Return the state dict of a `PCA` with standardize=True, and the origin of its fit (`Reducer.fitted_on`).

    Raises ValueError for a file that is missing, damaged or malicious, or not {pca_model, mean, std} of one width.
    """
    path = local_path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes: must be at most {MAX_BYTES}")
    try:
        saved: Any = read_weights_file(path, inert=INERT)
        if not isinstance(saved, dict):
            raise ValueError(f"holds a {type(saved).__name__}, not a dictionary with pca_model, mean and std")
        if missing := sorted({"pca_model", "mean", "std"} - set(saved)):
            raise ValueError(f"lacks {', '.join(missing)}: the published file holds pca_model, mean and std")
        model = saved["pca_model"].state if isinstance(saved["pca_model"], Inert) else None
        if not isinstance(model, dict) or model.get("whiten"):
            raise ValueError("holds a pca_model that is not a scikit-learn PCA with whiten=False")
        check_tensors((v for v in (*saved.values(), *model.values()) if isinstance(v, Tensor)), size)
        state = _state(saved, model)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    digest, count, encoder = sha256(path), model.get("n_samples_"), None
    sample = {"num_vectors": count} if type(count) is int else {}
    if digest == PUBLISHED_SHA256:
        encoder, sample["num_images"] = PUBLISHED_ENCODER, sample["num_vectors"] // VECTORS_PER_IMAGE
    return state, {"source": "published", "file_sha256": digest, "encoder": encoder, "sample": sample}


def _state(saved: dict, model: dict) -> dict[str, Tensor]:
    mean, std = _array(saved, "mean"), _array(saved, "std")
    pca_mean, components = _array(model, "mean_"), _array(model, "components_")
    variances, ratios = _array(model, "explained_variance_"), _array(model, "explained_variance_ratio_")
    width, rows = (mean.size,), (variances.size,)
    shapes: dict[str, tuple[np.ndarray, tuple[int, ...]]] = {
        "mean": (mean, width), "std": (std, width), "mean_": (pca_mean, width),
        "components_": (components, rows + width),
        "explained_variance_": (variances, rows), "explained_variance_ratio_": (ratios, rows),
    }  # fmt: skip
    for name, (array, shape) in shapes.items():
        if array.shape != shape:
            raise ValueError(f"holds {name} of shape {array.shape}: must be {shape}, like mean and explained_variance_")
    if len(zeros := np.flatnonzero(std <= 0)):
        raise ValueError(f"holds a std that is not positive, for the features {zeros[:8].tolist()}")
    if (variances < 0).any():
        raise ValueError("holds negative values in explained_variance_")
    state = {
        "mean": mean + std * pca_mean, "std": std, "components": components, "deviations": np.sqrt(variances),
        "explained": ratios.cumsum(),
    }  # fmt: skip
    return {name: torch.from_numpy(array).float() for name, array in state.items()}


def _array(values: dict, name: str) -> np.ndarray:
    """Return a float64 array from a tensor, or from a pickled array (version, shape, dtype, Fortran order, bytes)."""
    value = values.get(name)
    try:
        if isinstance(value, Inert):
            _, shape, dtype, columns_first, data = value.state
            kind = np.dtype({"f2": "<f2", "f4": "<f4", "f8": "<f8"}[dtype.arguments[0]])
            if dtype.state[1] != "<":
                raise ValueError("big-endian")
            value = np.frombuffer(data, kind).reshape(shape, order="F" if columns_first else "C")
        array = value.detach().numpy() if isinstance(value, Tensor) else value
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise TypeError("not floating-point numbers")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError):
        raise ValueError(f"holds a {name} that is not a little-endian floating-point array") from None
    if not np.isfinite(array).all():
        raise ValueError(f"holds NaN or infinite values in {name}")
    return array.astype(np.float64)
