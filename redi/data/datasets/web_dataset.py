"""Images in tar shards, on a disk or in object storage."""

import copy
import hashlib
import io
from collections.abc import Sequence
from typing import IO

import numpy as np
import torch
from torch import Tensor

from redi.data.datasets import EncodedImages, numbered_classes, register
from redi.data.storage.tar_shards import find_shards, index_shards
from redi.runtime.paths import cache_folder


@register
class WebDataset(EncodedImages):
    """Images in uncompressed tar files in the layout of the library WebDataset, which is not needed: the files of a
    sample follow one another and share a key, the name up to the first dot (key.jpg, .jpeg, .png or .webp, and
    key.cls with the label as text, or key.json).

    Images are read where they lie in the shards, each batch of a remote data set with a few requests at once. The order
    is that of the shards and of the files in them.

    The first start indexes the headers, 16 shards at a time; the index in `cache_dir`/tar_indices holds while path,
    size and ETag or time of change of a shard stay. Remote shards cost one request of 4 KiB per image (below some
    60 kB, shards are read as a whole): for ImageNet at 20 ms per request half an hour.

    Args:
        shards: paths or URLs that fsspec reads (s3://, https://, ...; `pip install 'redi[stream]'`), one or a
            list, in one kind of store. {00000..00146} and {a,b} stand for several, * for what is there, sorted.
        label_field: the field of key.json that holds the label; None: key.cls, or else 'label' or 'cls' of key.json.
        preprocessing: default: sizes as stored.
        num_classes: see Dataset. With 1, no labels are needed.
        cache_dir: default: $REDI_CACHE, or ~/.cache/redi.
        split, held_out_fraction, split_seed: see Dataset.
    """

    def __init__(
        self, shards: str | Sequence[str], *, label_field: str | None = None, num_classes: int | None = None,
        cache_dir: str | None = None, **part,
    ):  # fmt: skip
        self.store, files = find_shards(shards)
        folder = cache_folder(cache_dir) / "tar_indices"
        settings = {"labelled": num_classes != 1, "label_field": label_field}
        indices = index_shards(self.store, files, folder, settings)
        names = [f"{shard.name}/{key}" for shard, (keys, _) in zip(files, indices, strict=True) for key in keys]
        column = {name: torch.cat([tensors[name] for _, tensors in indices]).numpy() for name in indices[0][1]}
        self.paths = [shard.path for shard in files]
        self.shard = np.repeat(np.arange(len(files)), [len(keys) for keys, _ in indices])
        self.starts, self.stops = column["offsets"], column["offsets"] + column["sizes"]
        self.times, self.fetched = column["times"], {}
        labels = np.zeros_like(column["labels"]) if num_classes == 1 else column["labels"]
        class_names = numbered_classes(labels, "WebDataset.shards")
        super().__init__(names=names, labels=labels, class_names=class_names, num_classes=num_classes, **part)

    def read(self, index: int) -> IO[bytes]:
        data = self.fetched.get(index)
        return io.BytesIO(self._bytes([index])[0] if data is None else data)

    def batch(self, positions: Sequence[int], mirror: np.ndarray | None = None) -> dict[str, Tensor]:
        """As of every data set; from object storage, with all requests at once. Raises Unreachable (an OSError)."""
        if not self.store.files.async_impl:  # a disk: each thread reads what it decodes
            return super().batch(positions, mirror)
        indices = self.indices[np.asarray(positions, dtype=np.int64)].tolist()
        here = copy.copy(self)
        here.fetched = dict(zip(indices, self._bytes(indices), strict=True))
        return EncodedImages.batch(here, positions, mirror)

    def _bytes(self, indices: Sequence[int]) -> list[bytes]:
        ranges = [(self.paths[self.shard[i]], int(self.starts[i]), int(self.stops[i])) for i in indices]
        return self.store.read_ranges(ranges)

    def provenance(self) -> dict:
        """Without the shards' place: of each image its size and the time in its header, which travel with a copy."""
        content = (self.stops - self.starts).tobytes() + self.times.tobytes()
        content += "\0".join(self.source_names).encode(errors="surrogatepass")
        return {
            "dataset": "WebDataset",
            "num_images": len(self.source_names),
            "images": hashlib.sha256(content).hexdigest(),
            "preprocessing": self.preprocessing.provenance(),
        }
