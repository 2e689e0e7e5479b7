"""Data sets: labelled images in a fixed order, and their registry."""

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
from redi.runtime.ranges import check_choice

Split = Literal["all", "train", "held_out"]


class UnreadableImage(ValueError):
    """An image cannot be decoded; the message names the file and the cause."""


class MixedSizes(ValueError):
    """The images of one batch differ in size."""


class Dataset(ABC):
    """Images of one size with integer labels, in a fixed order.

    A component calls `super().__init__` with its names and labels, and implements `load` and `provenance`. If stored
    images differ in size or mode, it also implements `inspect` and `output_size`. `load` and `inspect` must be
    thread-safe. If a constructor ends in `**part`, it also takes the optional arguments of its base class.

    Args:
        names: a unique name per image for messages, such as a path in the folder or an index.
        labels: (len(names),) integers in [0, num_classes); None: unlabelled, all images are in one class.
        class_names: the names of labels 0, 1, ...; default: the numbers.
        num_classes: the number of classes of a model; default: the number of `class_names`. 1 means unconditional.
        split: the part to use: 'all', 'train' or 'held_out'.
        held_out_fraction: the fraction of the images of each class in the part 'held_out'.
        split_seed: the seed of the random split. With equal settings, 'train' and 'held_out' share no image.
    """

    mirrored = False  # whether training mirrors images at random; set by `prepare` on a copy
    left_out: Mapping[str, int] = {}  # the number of ignored files in the source by kind, for the audit
    warnings: Sequence[str] = ()  # assumptions about the source, for the audit

    def __init__(
        self, *, names: Sequence[str], labels: Sequence[int] | np.ndarray | None,
        class_names: Sequence[str] | None = None, num_classes: int | None = None, split: Split = "all",
        held_out_fraction: float = 0.0, split_seed: int = 0,
    ):  # fmt: skip
        if labels is None:
            labels, class_names = [0] * len(names), ["unlabelled"]
        all_labels = np.asarray(labels, dtype=np.int64)
        self.indices = split_indices(all_labels, split, held_out_fraction, split_seed)  # positions in the source
        self.names = [names[i] for i in self.indices]
        self.labels = all_labels[self.indices]
        component = type(self).__name__
        self.class_names = numbered_classes(all_labels, component) if class_names is None else list(class_names)
        self.num_classes = len(self.class_names) if num_classes is None else num_classes
        for name in (*names, *self.class_names):
            if name.encode(errors="ignore").decode() != name:  # cannot be shown on terminals and pages
                raise ValueError(f"{component}: the name {name!r} is not UTF-8: rename it")
        if self.num_classes == 1:
            self.labels = np.zeros_like(self.labels)
        self.split = split

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        signature = inspect.signature(cls.__init__)
        parameters = {name: p for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
        if len(parameters) < len(signature.parameters):
            base = inspect.signature(super(cls, cls).__init__).parameters.values()
            inherited = [p for p in base if p.default is not p.empty and p.name not in parameters]
            signature = signature.replace(parameters=[*parameters.values(), *inherited])
            cls.__init__.__signature__ = signature  # type: ignore[attr-defined]  # read by inspect and gin

    @abstractmethod
    def load(self, index: int) -> np.ndarray:
        """Return stored image `index`, preprocessed: (H, W, 3) uint8 RGB; thread-safe. Raises UnreadableImage."""

    @abstractmethod
    def provenance(self) -> dict:
        """Return everything that determines pixels, order and labels, as JSON values."""

    def inspect(self, index: int) -> tuple[int, int, str]:
        """Decode image `index`; return its upright width and height and its Pillow mode. Raises UnreadableImage."""
        height, width = np.shape(self.load(index))[:2]
        return width, height, "RGB"

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that `load` gives to an image of this upright size."""
        return width, height

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        """Return image (3, H, W) uint8 and label."""
        image = self.load(int(self.indices[position]))
        kind, shape = getattr(image, "dtype", type(image).__name__), np.shape(image)
        if kind != np.uint8 or len(shape) != 3 or shape[2] != 3:
            result = f"{type(self).__name__}.load returned {kind} {shape} for {self.names[position]}"
            raise (ValueError if kind == np.uint8 else WrongType)(f"{result}, but must return uint8 (H, W, 3)")
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), int(self.labels[position])

    def batch(self, positions: Sequence[int] | np.ndarray, mirror: np.ndarray | None = None) -> dict[str, Tensor]:
        """Return {"images": (N, 3, H, W) uint8, "labels": (N,) int64}; flip images where `mirror` (N,) is true."""
        if not len(positions):
            raise ValueError("positions is empty: a batch needs at least one position")
        samples = list(_readers().map(self.__getitem__, positions))
        shapes = [tuple(image.shape) for image, _ in samples]
        if odd := next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None):
            sizes = ", ".join(f"{self.names[positions[i]]} has {shapes[i]}" for i in (0, odd))
            raise MixedSizes(f"images differ in size after preprocessing: {sizes}; check whether a file was replaced")
        images = torch.stack([image for image, _ in samples])
        if mirror is not None:
            flipped = torch.as_tensor(mirror, dtype=torch.bool)
            images[flipped] = images[flipped].flip(-1)
        return {"images": images, "labels": torch.tensor([label for _, label in samples])}

    @property
    def image_size(self) -> int:
        """Side of the preprocessed square images, in pixels."""
        return self[0][0].shape[-1]

    def without(self, positions: Sequence[int]) -> "Dataset":
        """Return a copy of the data set without the images at `positions`, in the same order."""
        keep = np.setdiff1d(np.arange(len(self)), np.asarray(positions, dtype=np.int64))
        smaller = copy.copy(self)
        smaller.indices, smaller.labels = self.indices[keep], self.labels[keep]
        smaller.names = [self.names[i] for i in keep]
        return smaller

    def fingerprint(self) -> str:
        """Return a hash of provenance, names, classes and labels: the key of everything computed from the images."""
        code = source_sha256(type(self))  # an edited plug-in may read other images
        return self._hash(self.provenance(), *([code] if code else []))

    def content_fingerprint(self) -> str:
        """Return a hash that copies of the images share, even with other modification times. It may read every file."""
        return self._hash(self.provenance())

    def _hash(self, provenance: dict, *code: str) -> str:
        content = [provenance, self.names, self.class_names, self.num_classes, *code]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode() + self.labels.tobytes()).hexdigest()


class PreprocessedImages(Dataset):
    """Base class for images of any size, with optional `preprocessing`; by default images keep their stored size."""

    def __init__(self, *, preprocessing: Preprocessing | None = None, **rest):
        super().__init__(**rest)
        if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
            binding = f"{type(self).__name__}.preprocessing"
            raise ValueError(f"{binding} = {preprocessing!r} must be a Preprocessing: set {binding} = Preprocessing()")
        self.preprocessing = preprocessing or Preprocessing()

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        return self.preprocessing.output_size(width, height)


class EncodedImages(PreprocessedImages):
    """Base class for images stored as JPEG, PNG, ...; a component implements `read` instead of `load`."""

    def __init__(self, *, names: Sequence[str], **rest):
        super().__init__(names=names, **rest)
        self.source_names = names

    @abstractmethod
    def read(self, index: int) -> IO[bytes]:
        """Open the encoded bytes of image `index` of the source."""

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
                image.load()  # decodes the pixels; a truncated file raises here
                check_convertible(image)
                return image
        except Unreachable:  # the image is not damaged and must not be skipped as unreadable
            raise
        except UnidentifiedImageError as cause:  # its own message is the address of a Python object
            reason = f"not an image in one of the supported formats ({', '.join(FORMATS)})"
            raise UnreadableImage(f"{self.source_names[index]}: {reason}") from cause
        except Exception as cause:  # decoders raise OSError, SyntaxError, struct.error, DecompressionBombError, ...
            raise UnreadableImage(f"{self.source_names[index]}: {type(cause).__name__}: {cause}") from cause


def numbered_classes(labels: np.ndarray, where: str) -> list[str]:
    """Return class names '0', '1', ... up to the largest label, for labels without names."""
    largest = int(labels.max(initial=0))
    if largest >= 1_000_000:  # identifiers instead of labels would fill the memory with class names
        raise ValueError(f"{where}: the label {largest} means {largest + 1} classes; number the labels from 0")
    return [str(label) for label in range(largest + 1)]


@cache
def _readers() -> ThreadPoolExecutor:
    """Return the threads that decode images; PIL releases the interpreter lock while it decodes."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")


def split_indices(labels: np.ndarray, split: Split, held_out_fraction: float, seed: int) -> np.ndarray:
    """Return sorted indices of one part of a per-class random split; 'train' and 'held_out' partition all indices."""
    check_choice("split", split, ("all", "train", "held_out"))
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"held_out_fraction = {held_out_fraction} must be in [0, 1)")
    if split == "all":
        return np.arange(len(labels))
    if held_out_fraction == 0:
        raise ValueError(f"split = {split!r} needs held_out_fraction > 0: set held_out_fraction, or split = 'all'")
    generator = np.random.Generator(np.random.PCG64(seed))
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        held_out[members[: round(held_out_fraction * len(members))]] = True
    return np.flatnonzero(held_out if split == "held_out" else ~held_out)


# Arguments that a resumed run may change, because the fingerprint detects other images.
BY_CONTENT = ("path", "shards", "cache_dir", "numeric_order")
datasets = Registry("datasets", Dataset, by_content=BY_CONTENT)
register = datasets.register
discover(__name__, datasets)
