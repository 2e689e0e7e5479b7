"""Export samples for other programs: as PNG files, and as batches of ADM's evaluation."""

import itertools
import json
import logging
import math
import os
import shutil
import zipfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from redi.evaluation.samples.stored import Samples
from redi.runtime.atomic import atomic_file, atomic_folder, write_json
from redi.runtime.shared_work import complete

log = logging.getLogger(__name__)

FORMATS = ("png", "adm")


def write_exports(run_dir: Path, samples: Samples, formats: Collection[str]) -> None:
    """Export every set of samples that is not exported yet. One of several processes does the work.

    'png': a folder `samples_png` with 000000.png, ... and a record.json with the labels. 'adm': a file
    `samples_adm.npz`, see `write_adm`. With several sets, the names end in `_seed<seed>`.
    """
    writers = {"png": ("samples_png{}", write_png), "adm": ("samples_adm{}.npz", write_adm)}
    for (form, (name, write)), one in itertools.product(writers.items(), samples.sets):
        path = run_dir / name.format(f"_seed{one['seed']}" if len(samples.sets) > 1 else "")
        if form in formats:

            def finished(path: Path = path) -> bool:
                return _source(path) == samples.sha256

            complete(path.with_name(f".{path.name}.work"), finished=finished, finish=partial(write, path, samples, one))
            log.info("exported: %s", path)
        elif path.exists() and _source(path) != samples.sha256:
            log.warning("%s was exported from earlier samples: delete it, or add %r to sample.export", path, form)


def write_adm(path: Path, samples: Samples, one: dict) -> None:
    """Write the set `one` of `samples.sets` in the format of ADM's sampling scripts.

    An uncompressed .npz with images arr_0 (N, H, W, 3) uint8 and labels arr_1 (N,) int64. The archive's comment is the
    hash of the samples.
    """
    labels, size = samples.labels[one["start"] : one["stop"]].numpy(), samples.record["image_size"]
    shape = (len(labels), size, size, 3)
    needed, free = math.prod(shape), shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(f"{path} needs {needed / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are free: free some space")
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = samples.sha256.encode()
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            _write_header(member, np.dtype(np.uint8), shape)
            for images in _images(samples, one):
                member.write(images.permute(0, 2, 3, 1).contiguous().numpy().data)
        with archive.open("arr_1.npy", "w", force_zip64=True) as member:
            _write_header(member, labels.dtype, labels.shape)
            member.write(labels.data)


def _write_header(member, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Write an .npy header of version 1.0, which ADM's reader expects."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)


def write_png(path: Path, samples: Samples, one: dict) -> None:
    """Write the set `one` of `samples.sets` as a folder of numbered PNG files."""
    labels = samples.labels[one["start"] : one["stop"]].tolist()
    with atomic_folder(path) as folder, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        number = 0
        for images in _images(samples, one):
            arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
            names = [folder / f"{number + i:06d}.png" for i in range(len(arrays))]
            list(pool.map(lambda array, name: Image.fromarray(array).save(name), arrays, names))
            number += len(arrays)
        write_json(folder / "record.json", {"samples_sha256": samples.sha256, "seed": one["seed"], "labels": labels})


def _images(samples: Samples, one: dict) -> Iterator[Tensor]:
    for index, part in enumerate(samples.record["parts"]):
        if part["seed"] == one["seed"]:
            yield samples.part(index)["images"]


def _source(path: Path) -> str | None:
    """Return the hash of the samples that an export was made from; None if the export is missing or damaged."""
    try:
        if path.suffix != ".npz":
            return json.loads((path / "record.json").read_text())["samples_sha256"]
        with zipfile.ZipFile(path) as archive:
            return archive.comment.decode(errors="replace")
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
