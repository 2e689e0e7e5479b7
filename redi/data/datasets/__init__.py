"""Data sets: labelled images in a fixed order, and the registry of them."""

import copy
import hashlib
import inspect
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from redi.core.inputs import WrongType
from redi.core.plug_ins import source_sha256
from redi.core.registry import Registry, discover
from redi.data.preprocessing import FORMATS, MAX_BYTES, Preprocessing, check_convertible, open_image
from redi.data.storage.object_store import Unreachable

Split = Literal["all", "train", "held_out"]


class UnreadableImage(ValueError):
    """An image that cannot be decoded; the message names the file and the cause."""


class MixedSizes(ValueError):
    """The images of one batch differ in size."""


class Dataset(ABC):
    """Images of one size with integer labels, in an order that never changes.

    A component calls `super().__init__` once its labels are known and implements `load` and `provenance`; where stored
    images differ in size or mode also `inspect` and `output_size`. A constructor that ends in `**part` takes, and shows
    to gin, the optional arguments of its base class as its own.

    Args:
        names: one name per image, unique, for messages (a path inside the folder, an index).
        labels: (len(names),) integers in [0, num_classes); None: there are none, and all images are of one class.
        class_names: the names of labels 0, 1, ...; default: their numbers.
        num_classes: the classes a model is built for; default: those of `class_names`. 1 means unconditional.
        split, held_out_fraction, split_seed: which part this object is. The split is drawn per class
            from the seed, so that `train` and `held_out` of the same settings never share an image.
    """

    mirrored = False  # whether training takes the images mirrored by chance; set by `prepare` on a copy
    left_out: Mapping[str, int] = {}  # what lies beside the images and is not taken: how many of each kind
    warnings: Sequence[str] = ()  # what an audit tells of how the source was understood

    def __init__(
        self, *, names: Sequence[str], labels: Sequence[int] | None, class_names: Sequence[str] | None = None,
        num_classes: int | None = None, split: Split = "all", held_out_fraction: float = 0.0, split_seed: int = 0,
    ):  # fmt: skip
        if labels is None:
            labels, class_names = [0] * len(names), ["unlabelled"]
        labels = np.asarray(labels, dtype=np.int64)
        # Position in this data set -> position in the source
        self.indices = split_indices(labels, split, held_out_fraction, split_seed)
        self.names = [names[i] for i in self.indices]
        self.labels = labels[self.indices]
        self.class_names = numbered_classes(labels, type(self).__name__) if class_names is None else list(class_names)
        self.num_classes = len(self.class_names) if num_classes is None else num_classes
        for name in (*names, *self.class_names):
            if name.encode(errors="ignore").decode() != name:  # terminals, pages and records could not show it
                raise ValueError(f"{type(self).__name__}: the name {name!r} is not UTF-8: rename it")
        if self.num_classes == 1:
            self.labels = np.zeros_like(self.labels)
        self.split = split

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        signature = inspect.signature(cls.__init__)
        own = {name: p for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
        if len(own) < len(signature.parameters):
            base = inspect.signature(super(cls, cls).__init__).parameters.values()
            inherited = [p for p in base if p.default is not p.empty and p.name not in own]
            cls.__init__.__signature__ = signature.replace(parameters=[*own.values(), *inherited])

    @abstractmethod
    def load(self, index: int) -> np.ndarray:
        """Image number `index` of the source (see `indices`), preprocessed: (H, W, 3) uint8 RGB. Raises
        UnreadableImage. Must be safe to call from several threads, as `inspect`.
        """

    @abstractmethod
    def provenance(self) -> dict:
        """What these images are, as JSON: everything that decides pixels, order and labels."""

    def inspect(self, index: int) -> tuple[int, int, str]:
        """Width, height and mode (Pillow's: RGB, L, ...) of stored image `index`, fully decoded and upright. Raises
        UnreadableImage. Default: of what `load` returns.
        """
        height, width = np.shape(self.load(index))[:2]
        return width, height, "RGB"

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of what `load` returns for an image of which `inspect` returns this width and height."""
        return width, height

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        """-> image (3, H, W) uint8, label."""
        image = self.load(int(self.indices[position]))
        kind, shape = getattr(image, "dtype", type(image).__name__), np.shape(image)
        if kind != np.uint8 or len(shape) != 3 or shape[2] != 3:
            gave = f"{type(self).__name__}.load gave {kind} {shape} for {self.names[position]}"
            raise (ValueError if kind == np.uint8 else WrongType)(f"{gave}: a uint8 array (H, W, 3) is needed")
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), int(self.labels[position])

    def batch(self, positions: Sequence[int], mirror: np.ndarray | None = None) -> dict[str, Tensor]:
        """-> {"images": (N, 3, H, W) uint8, "labels": (N,) int64}, decoded by several threads; those of `mirror` (N,)
        bool are flipped left to right.
        """
        images, labels = zip(*_readers().map(self.__getitem__, positions), strict=True)
        if odd := next((i for i, image in enumerate(images) if image.shape != images[0].shape), None):
            sizes = [f"{self.names[positions[i]]} has {tuple(images[i].shape)}" for i in (0, odd)]
            raise MixedSizes(f"images of different sizes after preprocessing: {', '.join(sizes)}; was one replaced?")
        images = torch.stack(images)
        if mirror is not None:
            flipped = torch.as_tensor(mirror, dtype=torch.bool)
            images[flipped] = images[flipped].flip(-1)
        return {"images": images, "labels": torch.tensor(labels)}

    @property
    def image_size(self) -> int:
        """S, the side of the preprocessed (square) images."""
        return self[0][0].shape[-1]

    def without(self, positions: Sequence[int]) -> "Dataset":
        """This data set without the images at `positions`; the order stays."""
        keep = np.setdiff1d(np.arange(len(self)), np.asarray(positions, dtype=np.int64))
        smaller = copy.copy(self)
        smaller.indices, smaller.labels = self.indices[keep], self.labels[keep]
        smaller.names = [self.names[i] for i in keep]
        return smaller

    def fingerprint(self) -> str:
        """A hash of provenance, names, classes and labels: the key of everything computed from these images."""
        code = source_sha256(type(self))  # an edited plug-in reads other images
        return self._hash(self.provenance(), *([code] if code else []))

    def content_fingerprint(self) -> str:
        """What a run is resumed by: the same for all copies of the images, whose files' times of change may differ. It
        may read every file, once.
        """
        return self._hash(self.provenance())

    def _hash(self, provenance: dict, *code: str) -> str:
        content = [provenance, self.names, self.class_names, self.num_classes, *code]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode() + self.labels.tobytes()).hexdigest()


class PreprocessedImages(Dataset):
    """Images of any size; without `preprocessing`, sizes stay as stored."""

    def __init__(self, *, preprocessing: Preprocessing | None = None, **rest):
        super().__init__(**rest)
        if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
            binding = f"{type(self).__name__}.preprocessing"
            raise ValueError(f"{binding} = {preprocessing!r} is not a Preprocessing: set {binding} = Preprocessing()")
        self.preprocessing = preprocessing or Preprocessing()

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        return self.preprocessing.output_size(width, height)


class EncodedImages(PreprocessedImages):
    """Images stored as JPEG, PNG, ...: a component implements `read` in place of `load`."""

    def __init__(self, *, names: Sequence[str], **rest):
        super().__init__(names=names, **rest)
        self.source_names = names

    @abstractmethod
    def read(self, index: int) -> IO[bytes]:
        """The encoded bytes of image `index` of the source."""

    def load(self, index: int) -> np.ndarray:
        return self.preprocessing(self._decode(index))

    def inspect(self, index: int) -> tuple[int, int, str]:
        image = self._decode(index)
        return *self.preprocessing.upright(image).size, image.mode

    def _decode(self, index: int) -> Image.Image:
        try:
            with self.read(index) as file:
                data = file.read(MAX_BYTES + 1)
            with open_image(data) as image:
                self.preprocessing.check(image)
                image.load()  # until here only the header was read: a truncated file shows only now
                check_convertible(image)
                return image
        except Unreachable:  # not damage: the image must not be left out as unreadable
            raise
        except UnidentifiedImageError as cause:  # its own text is the address of a Python object
            what = f"no image in a format that Pillow knows, or in none of {', '.join(FORMATS)}"
            raise UnreadableImage(f"{self.source_names[index]}: {what}") from cause
        except Exception as cause:  # decoders raise OSError, SyntaxError, struct.error, DecompressionBombError, ...
            raise UnreadableImage(f"{self.source_names[index]}: {type(cause).__name__}: {cause}") from cause


def numbered_classes(labels: np.ndarray, where: str) -> list[str]:
    """Class names '0', '1', ... up to the largest label, for labels that come without names."""
    largest = int(labels.max(initial=0))
    if largest >= 1_000_000:  # an identifier taken for a label would otherwise fill the memory with class names
        raise ValueError(f"{where}: the label {largest} would mean {largest + 1} classes; labels count from 0")
    return [str(label) for label in range(largest + 1)]


@cache
def _readers() -> ThreadPoolExecutor:
    """Threads that decode images; PIL releases the interpreter lock while it decodes."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")


def split_indices(labels: np.ndarray, split: Split, held_out_fraction: float, seed: int) -> np.ndarray:
    """Sorted indices of one part of a per-class random split; both parts together are everything, once."""
    if split not in ("all", "train", "held_out"):
        raise ValueError(f"split = {split!r}: it is 'all', 'train' or 'held_out'")
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"held_out_fraction = {held_out_fraction} lies outside [0, 1)")
    if split == "all":
        return np.arange(len(labels))
    if held_out_fraction == 0:
        raise ValueError(f"split = {split!r} needs held_out_fraction > 0")
    generator = np.random.Generator(np.random.PCG64(seed))
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        held_out[members[: round(held_out_fraction * len(members))]] = True
    return np.flatnonzero(held_out if split == "held_out" else ~held_out)


# A run notices other images by their fingerprint, wherever they lie.
BY_CONTENT = ("path", "shards", "cache_dir", "numeric_order")
datasets = Registry("datasets", Dataset, by_content=BY_CONTENT)
register = datasets.register
discover(__name__, datasets)
