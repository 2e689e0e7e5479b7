"""The PCA statistics published with the paper's code (dino_pca_model.pth), read without executing the pickle.

The released code standardises features with `mean` and `std`, then applies scikit-learn's PCA, which subtracts its own
mean: z = components ((f - mean) / std - pca_mean). With mean' = mean + std * pca_mean this is
z = components (f - mean') / std, the form of `LinearReducer`.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redi.models.reducers.pca import PCA
from redi.runtime.archives import read_torch_archive
from redi.runtime.checksums import sha256

SKLEARN_PCA = "sklearn.decomposition._pca.PCA"
PUBLISHED_SHA256 = "60edf20f780c27cdb528af77a15ab41a82f32eadeb1cd97cc322f528e7edc13d"
# What the released code made that file from: DINOv2-B with registers, its last layer, its own resize rule. A file that
# someone else made with the code does not say which encoder it belongs to.
PUBLISHED_ENCODER = {"timm_model": "vit_base_patch14_reg4_dinov2.lvd142m", "layers": [11], "resize": "released"}
VECTORS_PER_IMAGE = 256  # the grid of that encoder is 16 x 16


def import_published_pca(path: str | Path, *, rank: int = 8, store_rank: int | None = None, scale: str = "raw") -> PCA:
    """The reducer of the published weights; also bindable: PCA.path = '.../dino_pca_model.pth'.

    Args:
        scale: 'raw' is what the published weights were trained with.

    Raises:
        ValueError: see `read_published_pca`; a rank above the components in the file.
    """
    return PCA(path=str(path), rank=rank, store_rank=store_rank, scale=scale, standardize=True)


def read_published_pca(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """-> the state of a `PCA` with standardize=True, and what it was fitted on, as far as the file tells.

    Raises:
        ValueError: missing, damaged, hostile, or not {pca_model, mean, std} of one width; says what.
    """
    path = Path(path).expanduser()
    saved = read_torch_archive(path, records=[SKLEARN_PCA])
    if not isinstance(saved, dict) or (absent := {"pca_model", "mean", "std"} - set(saved)):
        found = f"it lacks {', '.join(sorted(absent))}" if isinstance(saved, dict) else "it is no dictionary"
        raise ValueError(f"{path} does not hold the published statistics (pca_model, mean, std): {found}")
    model = getattr(saved["pca_model"], "state", None)
    if not isinstance(model, dict) or model.get("whiten"):
        raise ValueError(f"{path}: its pca_model is no PCA of scikit-learn without whitening")
    arrays = {name: _array(saved, name, path) for name in ("mean", "std")}
    names = ("mean_", "components_", "explained_variance_", "explained_variance_ratio_")
    arrays |= {name: _array(model, name, path) for name in names}
    width, rows = arrays["mean"].size, len(np.atleast_1d(arrays["explained_variance_"]))
    expected = dict.fromkeys(("mean", "std", "mean_"), (width,)) | dict.fromkeys(names[2:], (rows,))
    for name, shape in (expected | {"components_": (rows, width)}).items():
        if arrays[name].shape != shape:
            raise ValueError(
                f"{path}: {name} has the shape {arrays[name].shape}, not {shape} as mean and variances say"
            )
    if len(zeros := np.flatnonzero(arrays["std"] <= 0)):
        raise ValueError(f"{path}: std is not positive at the features {zeros[:8].tolist()}")
    if (arrays["explained_variance_"] < 0).any():
        raise ValueError(f"{path}: explained_variance_ is negative")
    state = {
        "mean": arrays["mean"] + arrays["std"] * arrays["mean_"],
        "std": arrays["std"],
        "components": arrays["components_"],
        "deviations": np.sqrt(arrays["explained_variance_"]),
        "explained": arrays["explained_variance_ratio_"].cumsum(),
    }
    return {name: torch.from_numpy(array).float() for name, array in state.items()}, _fitted_on(path, model)


def _array(found: dict, name: str, path: Path) -> np.ndarray:
    array = found.get(name)
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise ValueError(f"{path}: {name} is missing or no array of floating-point numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {name} holds NaN or infinite values")
    return array.astype(np.float64)


def _fitted_on(path: Path, model: dict) -> dict:
    digest, count = sha256(path), model.get("n_samples_")
    known = digest == PUBLISHED_SHA256
    sample = {"num_vectors": count} if type(count) is int else {}
    sample |= {"num_images": count // VECTORS_PER_IMAGE} if known else {}
    return {
        "source": "published",
        "file_sha256": digest,
        "encoder": PUBLISHED_ENCODER if known else None,
        "sample": sample,
    }
