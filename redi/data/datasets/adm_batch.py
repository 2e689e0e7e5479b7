"""Image batches in the .npz format of ADM's evaluation suite."""

import numpy as np
from PIL import Image

from redi.data.datasets import PreprocessedImages, numbered_classes, register
from redi.data.preprocessing import check_pixels
from redi.data.storage.npz import NpzArray, npz_entries
from redi.runtime.paths import local_path


@register
class AdmBatch(PreprocessedImages):
    """A reference or sample batch of guided-diffusion (Dhariwal and Nichol 2021).

    The .npz file has the images as arr_0 (N, H, W, 3) uint8 and optionally their labels as arr_1 (N,); without labels
    all images are in one class. Uncompressed images are memory-mapped, compressed ones are loaded into memory. No
    pickle is ever loaded.

    Args:
        path: the file.
        preprocessing: a Preprocessing; default: images keep their stored size.
        num_classes, split, held_out_fraction, split_seed: see Dataset.
    """

    def __init__(self, path: str, **part):
        where = f"AdmBatch.path = {str(path)!r}"
        file = local_path(path).resolve()
        if not file.is_file():
            raise ValueError(f"{where} is not a file (looked for {file}); bind the path of a .npz file")
        members = npz_entries(file, where)
        if "arr_0" not in members:
            arrays = ", ".join(sorted(members)) or "nothing"
            hint = "; it is a file of statistics" if {"mu", "sigma"} <= set(members) else ""
            raise ValueError(f"{where} has no images: an ADM batch has arr_0, but this file has {arrays}{hint}")
        self.images = images = NpzArray(file, members["arr_0"], where)
        if images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[3] != 3:
            raise ValueError(f"{where}: arr_0 is {images.dtype} {images.shape}; images must be uint8 (N, H, W, 3)")
        check_pixels(*images.shape[1:3])
        self.sums = {name: [info.CRC, info.file_size] for name, info in members.items() if name in ("arr_0", "arr_1")}
        count, labels, class_names = images.shape[0], None, None
        if "arr_1" in members:
            stored = NpzArray(file, members["arr_1"], where)
            if stored.dtype.kind not in "iu" or stored.shape != (count,):
                kind = f"{stored.dtype} {stored.shape}"
                raise ValueError(f"{where}: arr_1 is {kind}; the labels of these images must be integers ({count},)")
            labels = np.array(stored.read(), dtype=np.int64)
            if labels.min(initial=0) < 0:
                raise ValueError(f"{where}: arr_1 has the label {labels.min()}; number the labels from 0")
            class_names = numbered_classes(labels, where)
        names = [f"image {number:06d}" for number in range(count)]
        super().__init__(names=names, labels=labels, class_names=class_names, **part)

    def load(self, index: int) -> np.ndarray:
        return self.preprocessing(Image.fromarray(np.ascontiguousarray(self.images.read()[index])))

    def inspect(self, index: int) -> tuple[int, int, str]:
        _, height, width, _ = self.images.shape
        return width, height, "RGB"

    def provenance(self) -> dict:
        """Return CRC and size of the arrays, and the preprocessing; the path does not matter."""
        return {"dataset": "AdmBatch", "crc32_and_bytes": self.sums, "preprocessing": self.preprocessing.provenance()}
