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
    """Images in uncompressed tar files with the layout of the library WebDataset, which need not be installed.

    The files of a sample are consecutive and share a key, the file name up to the first dot: key.jpg, .jpeg, .png or
    .webp, and the label as text in key.cls or in key.json. The order is that of the shards and of the files in them.
    Images are read in place; a batch of a remote data set takes a few parallel requests.

    The first start indexes the headers, 16 shards at a time. The index in `cache_dir`/tar_indices is reused as long as
    path, size, and ETag or modification time of a shard are unchanged. Indexing remote shards costs a request of 4 KiB
    per image (shards of images below about 60 kB are read completely): half an hour for ImageNet at 20 ms per request.

    Args:
        shards: a path or URL that fsspec reads (s3://, https://, ...; `pip install 'redi-diffusion[stream]'`), or a
            list of them, all in the same kind of store. {00000..00146} and {a,b} expand to several; * matches existing
            files, sorted.
        label_field: the field of key.json with the label; None: key.cls, or else the field 'label' or 'cls'.
        preprocessing: a Preprocessing; default: images keep their stored size.
        num_classes: see Dataset. With 1, no labels are needed.
        cache_dir: folder of the index; default: $REDI_CACHE, or ~/.cache/redi.
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
        self.times = column["times"]
        self.fetched: dict[int, bytes] = {}  # image -> its bytes, during `batch`
        labels = np.zeros_like(column["labels"]) if num_classes == 1 else column["labels"]
        class_names = numbered_classes(labels, "WebDataset.shards")
        super().__init__(names=names, labels=labels, class_names=class_names, num_classes=num_classes, **part)

    def read(self, index: int) -> IO[bytes]:
        data = self.fetched.get(index)
        return io.BytesIO(self._bytes([index])[0] if data is None else data)

    def batch(self, positions: Sequence[int] | np.ndarray, mirror: np.ndarray | None = None) -> dict[str, Tensor]:
        """Return a batch as `Dataset.batch` does; object storage is read with parallel requests. Raises Unreachable."""
        if not self.store.files.async_impl:  # a disk: each decoding thread reads its own images
            return super().batch(positions, mirror)
        indices = self.indices[np.asarray(positions, dtype=np.int64)].tolist()
        view = copy.copy(self)
        view.fetched = dict(zip(indices, self._bytes(indices), strict=True))
        return EncodedImages.batch(view, positions, mirror)

    def _bytes(self, indices: Sequence[int]) -> list[bytes]:
        ranges = [(self.paths[self.shard[i]], int(self.starts[i]), int(self.stops[i])) for i in indices]
        return self.store.read_ranges(ranges)

    def provenance(self) -> dict:
        """Return a hash of sizes and header times of the images, equal for all copies of the shards."""
        content = (self.stops - self.starts).tobytes() + self.times.tobytes()
        content += "\0".join(self.source_names).encode(errors="surrogatepass")
        return {
            "dataset": "WebDataset",
            "num_images": len(self.source_names),
            "images": hashlib.sha256(content).hexdigest(),
            "preprocessing": self.preprocessing.provenance(),
        }
