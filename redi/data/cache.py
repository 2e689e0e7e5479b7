"""The cache of encoded images: safetensors shards, memory-mapped, with a manifest."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from redi.core.artefact import BrokenArtefact, sha256, shared_folder, write_json
from redi.core.codec import JointCodec
from redi.core.progress import progress
from redi.data.datasets import Dataset

MANIFEST = "manifest.json"
DTYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32, "I64": np.int64}


class Cache:
    """What `JointCodec.precompute` gave for every image of a data set, in its order, plus the labels.

    Args:
        folder: as written by `write_cache`.

    Raises:
        BrokenArtefact: a shard is missing or has another size than the manifest says.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        try:
            self.manifest = json.loads((self.folder / MANIFEST).read_text())
        except (FileNotFoundError, ValueError) as error:
            raise BrokenArtefact(
                f"{self.folder / MANIFEST} cannot be read ({error}): delete {self.folder} and run prepare again"
            ) from None
        self.num_classes = self.manifest["num_classes"]
        self.image_size = self.manifest["image_size"]
        self.codec_fingerprint = self.manifest["codec_fingerprint"]
        self._shards = [_map_shard(self.folder / shard["file"], shard["bytes"]) for shard in self.manifest["shards"]]
        self._starts = np.cumsum([0] + [shard["rows"] for shard in self.manifest["shards"]])

    def fingerprint(self) -> str:
        """Of the data set it was made from."""
        return self.manifest["dataset_fingerprint"]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """Rows at these positions: {"image": ..., "<representation>": ..., "labels": (N,) int64}."""
        positions = np.asarray(positions)
        shard_of = np.searchsorted(self._starts, positions, side="right") - 1
        rows = {
            name: np.empty((len(positions), *array.shape[1:]), array.dtype) for name, array in self._shards[0].items()
        }
        for shard in np.unique(shard_of):
            chosen = np.flatnonzero(shard_of == shard)
            for name, array in self._shards[shard].items():
                rows[name][chosen] = array[positions[chosen] - self._starts[shard]]
        return {name: torch.from_numpy(array) for name, array in rows.items()}


def write_cache(
    folder: Path, codec: JointCodec, dataset: Dataset, *, batch_size: int = 256, rows_per_shard: int = 4096
) -> Cache:
    """Encodes every image once and writes the shards; the folder appears only when it is complete."""
    with shared_folder(folder) as temporary, progress(total=len(dataset), desc="encoding", unit="img") as bar:
        shards = []
        for start in range(0, len(dataset), rows_per_shard):
            parts = []
            for first in range(start, min(start + rows_per_shard, len(dataset)), batch_size):
                positions = range(first, min(first + batch_size, start + rows_per_shard, len(dataset)))
                batch = dataset.batch(positions)
                stored = {name: t.cpu() for name, t in codec.precompute(batch["images"].to(codec.device)).items()}
                parts.append(stored | {"labels": batch["labels"]})
                bar.update(len(positions))
            path = temporary / f"shard-{len(shards):05d}.safetensors"
            rows = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
            save_file(rows, path)
            size = {"rows": len(rows["labels"]), "bytes": path.stat().st_size, "sha256": sha256(path)}
            shards.append({"file": path.name, **size})
        manifest = {
            "dataset": dataset.provenance(),
            "dataset_fingerprint": dataset.fingerprint(),
            "num_classes": dataset.num_classes,
            "image_size": dataset.image_size,
            "codec": codec.provenance(),
            "codec_fingerprint": codec.fingerprint(),
            "shards": shards,
        }
        write_json(temporary / MANIFEST, manifest)
    return Cache(folder)


def _map_shard(path: Path, expected_bytes: int) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as read-only memory maps (its format: 8-byte length, JSON, data)."""
    if not path.exists() or path.stat().st_size != expected_bytes:
        raise BrokenArtefact(f"{path} is missing or truncated: delete {path.parent} and run prepare again")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: np.memmap(path, DTYPES[info["dtype"]], "r", 8 + length + info["data_offsets"][0], tuple(info["shape"]))
        for name, info in header.items()
        if name != "__metadata__"
    }
