"""The Inception network of FID: find its weights, build it, and resize images for it."""

import os
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from redi.models.published.file import fit_names
from redi.runtime.paths import local_path

STATE_DICT = "pt_inception-2015-12-05-6726825d.pth"  # the SHA-256 of the file begins with 6726825d
TORCHSCRIPT = "inception-2015-12-05.pt"  # NVIDIA's file holds code, so only the file with this hash is run
TORCHSCRIPT_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
SIDE = 299
NAMES = ("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.weight")  # identify the network


def find_weights(weights: str | None, binding: str) -> Path:
    """Return the weights file: `weights` itself, the file in the folder `weights`, or for None clean-fid's download.

    Raises ValueError if it is missing, with its source and where to put it.
    """
    if weights is None:
        return _downloaded(binding)
    path = local_path(weights)
    if not path.exists():
        raise ValueError(f"{binding} = {weights!r} does not exist: set it to the file {STATE_DICT}, or its folder")
    files = [path / name for name in (STATE_DICT, TORCHSCRIPT) if (path / name).exists()] if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{binding} = {weights!r}: the folder must hold {STATE_DICT} or {TORCHSCRIPT}")
    return files[0]


def _downloaded(binding: str) -> Path:
    from cleanfid.inception_pytorch import FID_WEIGHTS_URL

    path = Path(torch.hub.get_dir()) / "checkpoints" / STATE_DICT
    if path.exists():
        return path
    missing = f"{STATE_DICT}, which clean-fid downloads from the releases of pytorch-fid, is not in {path.parent}"
    advice = f"Download {FID_WEIGHTS_URL} and put it there, or set {binding} = 'the path of that file'"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ValueError(f"{missing}, and HF_HUB_OFFLINE is set. {advice}")
    try:  # with a timeout: torch.hub waits forever for a server that does not answer
        urllib.request.urlopen(FID_WEIGHTS_URL, timeout=5).close()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(FID_WEIGHTS_URL, str(path), STATE_DICT[-12:-4])
    except (OSError, RuntimeError) as error:  # no connection, a full disk, or a file with another hash
        raise ValueError(f"{missing}, and the download failed ({type(error).__name__}: {error}). {advice}") from None
    return path


def build(path: Path, tensors: dict[str, Tensor], binding: str, *, resize_inside: bool) -> nn.Module:
    """Build clean-fid's network with these tensors. Raises ValueError if they belong to another network.

    For the TorchScript file, build clean-fid's wrapper, which runs the code of the file; `resize_inside` lets that code
    resize the images too.
    """
    from cleanfid import inception_pytorch, inception_torchscript

    tensors = fit_names(tensors, NAMES)
    original = inception_pytorch.load_state_dict_from_url
    inception_pytorch.load_state_dict_from_url = lambda *_, **__: tensors  # instead of a download
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # deprecation warnings of torch.jit and torchvision
            if path.name == TORCHSCRIPT:
                return inception_torchscript.InceptionV3W(str(path.parent), download=False, resize_inside=resize_inside)
            return inception_pytorch.fid_inception_v3()
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{binding}: {path} does not hold the weights of FID's Inception: {reason}") from None
    finally:
        inception_pytorch.load_state_dict_from_url = original


def resized(images: Tensor, mode: str) -> Tensor:
    """Resize uint8 images (N, 3, S, S) to (N, 3, 299, 299) float32 in [0, 255], as `Inception.mode` defines."""
    if mode == "legacy_tensorflow":
        return tensorflow_bilinear(images.float(), SIDE)
    from cleanfid.resize import build_resizer

    with warnings.catch_warnings():  # clean-fid would turn off all warnings of the process
        resize = build_resizer(mode)
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()  # (N, S, S, 3)
    with ThreadPoolExecutor() as pool:
        outputs = np.stack(list(pool.map(resize, arrays)))  # Pillow releases the interpreter's lock while it resizes
    return torch.from_numpy(outputs).permute(0, 3, 1, 2).contiguous().to(images.device)


def tensorflow_bilinear(images: Tensor, side: int) -> Tensor:
    """Resize (N, C, S, S) to (N, C, side, side) as `tf.image.resize_bilinear(align_corners=False)` of TensorFlow 1.

    Output pixel i is read at the input position i * S / side.
    """
    size = images.shape[-1]
    position = torch.arange(side, device=images.device, dtype=torch.float32) * (size / side)
    low = position.floor().long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    weight = position - low
    left, right = images[..., low], images[..., high]
    rows = left + (right - left) * weight  # (N, C, S, side)
    top, bottom = rows[..., low, :], rows[..., high, :]
    return top + (bottom - top) * weight[:, None]
