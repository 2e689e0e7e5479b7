"""Handwritten digits from scikit-learn: a real data set without a download."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from redi.data.datasets import Dataset, Split, register
from redi.data.preprocessing import Preprocessing


@register
class Digits(Dataset):
    """1,797 grey images of handwritten digits, 8x8 pixels, in ten classes (Alpaydin and Kaynak 1998), as RGB.

    Args:
        image_size: side in pixels after bicubic enlargement; None: the native 8.
        num_classes, split, held_out_fraction, split_seed: see Dataset.
    """

    def __init__(
        self, *, image_size: int | None = None, split: Split = "train", held_out_fraction: float = 0.2, **part
    ):
        images, labels = _stored()
        self.images = np.rint(images * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
        self.preprocessing = Preprocessing(image_size=image_size)
        part |= {"split": split, "held_out_fraction": held_out_fraction}
        names = [f"digit {number:04d}" for number in range(len(self.images))]
        super().__init__(names=names, labels=labels, class_names=[*map(str, range(10))], **part)

    def load(self, index: int) -> np.ndarray:
        return self.preprocessing(Image.fromarray(self.images[index]))

    def inspect(self, index: int) -> tuple[int, int, str]:
        return 8, 8, "L"

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        return self.preprocessing.output_size(width, height)

    def provenance(self) -> dict:
        pixels = hashlib.sha256(self.images.tobytes()).hexdigest()
        return {"dataset": "Digits", "pixels": pixels, "preprocessing": self.preprocessing.provenance()}


def _stored() -> tuple[np.ndarray, np.ndarray]:
    """Read images (1797, 8, 8) in 0..16 and labels (1797,) from scikit-learn's file, as its import takes seconds."""
    package = importlib.util.find_spec("sklearn")
    folders = package.submodule_search_locations if package else None
    path = Path(folders[0]) / "datasets/data/digits.csv.gz" if folders else Path()
    if not path.is_file():  # scikit-learn changed its layout
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images, digits.target
    rows = np.loadtxt(path, delimiter=",", dtype=np.int64)
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
