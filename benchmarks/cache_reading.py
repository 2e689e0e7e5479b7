"""How fast `Cache.batch` reads shuffled batches, beside two other ways to gather the rows of the same shards.

    python benchmarks/cache_reading.py                     # about two minutes on one core

20,000 samples of 8x32x32 + 8x16x16 float16 and a label, batches of 256 in a seeded random order, page cache warm, one
thread. The ways take turns within one run, for machines are not equally fast at all times. "before" is what the library
did first: one np.memmap per tensor; gather the rows of a shard, scatter them into the batch. "by_shard" does so on
plain arrays. Writes results/cache_reading.json beside this file.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from redi.core.codec import JointCodec
from redi.data.cache import Cache
from redi.data.datasets import Dataset
from redi.data.encoding import write_cache
from redi.data.loader import batch_positions
from redi.data.shards import DTYPES, NAMES
from redi.models.autoencoders import Autoencoder
from redi.models.encoders import Encoder


class Numbers(Dataset):
    """One-pixel images: what is stored is made up by `Noise`."""

    def __init__(self, *, count: int):
        super().__init__(
            names=[f"{i:06d}" for i in range(count)], labels=np.arange(count) % 10, class_names=list("0123456789")
        )

    def load(self, index: int) -> np.ndarray:
        return np.zeros((1, 1, 3), np.uint8)

    def provenance(self) -> dict:
        return {"dataset": "Numbers"}


class Noise(Autoencoder):
    """Random moments (N, 8, 32, 32) float16, as of an SD-VAE at 256 pixels."""

    channels, downsample = 4, 1

    def moments(self, images):
        return torch.randn(len(images), 8, 32, 32).half()

    def latents(self, moments):
        return moments.float()

    def decode(self, latents):
        raise TypeError("noise is no image")

    def provenance(self) -> dict:
        return {"autoencoder": "Noise"}


class NoiseFeatures(Encoder):
    """Random features (N, 8, 16, 16)."""

    dim = 8

    def forward(self, images):
        return torch.randn(len(images), 8, 16, 16)

    def provenance(self) -> dict:
        return {"encoder": "NoiseFeatures"}


def before(cache: Cache, positions: np.ndarray) -> dict[str, torch.Tensor]:
    return by_shard(cache, positions, memory_maps(cache.folder))


@lru_cache(maxsize=1)
def memory_maps(folder: Path) -> list[dict[str, np.ndarray]]:
    """One np.memmap per tensor and shard."""
    shards = []
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        start = 8 + length
        shards.append({
            name: np.memmap(path, DTYPES[e["dtype"]], "r", start + e["data_offsets"][0], tuple(e["shape"]))
            for name, e in header.items() if name != "__metadata__"
        })  # fmt: skip
    return shards


def by_shard(cache: Cache, positions: np.ndarray, shards=None) -> dict[str, torch.Tensor]:
    shards = shards or cache._shards
    shard_of = np.searchsorted(cache._starts, positions, side="right") - 1
    names = [name for name in shards[0] if name != NAMES]
    first = shards[0]
    rows = {name: np.empty((len(positions), *first[name].shape[1:]), first[name].dtype) for name in names}
    for shard in np.unique(shard_of):
        chosen = np.flatnonzero(shard_of == shard)
        for name in names:
            rows[name][chosen] = shards[shard][name][positions[chosen] - cache._starts[shard]]
    return {name: torch.from_numpy(array) for name, array in rows.items()}


def by_stack(cache: Cache, positions: np.ndarray) -> dict[str, torch.Tensor]:
    shards = np.searchsorted(cache._starts, positions, side="right") - 1
    places = list(zip(shards.tolist(), (positions - cache._starts[shards]).tolist(), strict=True))
    names = [name for name in cache._shards[0] if name != NAMES]
    return {n: torch.from_numpy(np.stack([cache._shards[shard][n][row] for shard, row in places])) for n in names}


def library(cache: Cache, positions: np.ndarray) -> dict[str, torch.Tensor]:
    return cache.batch(positions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cache_reading.json")
    parser.add_argument("--num_images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ways, results = (before, by_shard, by_stack, library), {}
    for rows_per_shard in (4096, 256):  # 256: as many shards as a large data set has beside one batch
        with tempfile.TemporaryDirectory() as folder:
            images, codec = (
                Numbers(count=arguments.num_images),
                JointCodec(autoencoder=Noise(), alignment=NoiseFeatures()),
            )
            cache = write_cache(Path(folder) / "cache", codec, images, rows_per_shard=rows_per_shard)
            steps = len(cache) // 256
            order = [batch_positions(len(cache), 256, 0, step) for step in range(steps)]
            for way in ways:  # all give the same
                for name, tensor in way(cache, order[0]).items():
                    assert torch.equal(tensor, cache.batch(order[0])[name])
            rates = {way.__name__: [] for way in ways}
            for _ in range(arguments.rounds):
                for way in ways:
                    start = time.perf_counter()
                    for positions in order:
                        way(cache, positions)
                    rates[way.__name__].append(steps * 256 / (time.perf_counter() - start))
            results[f"rows_per_shard={rows_per_shard}"] = {
                "num_shards": len(cache.manifest["shards"]),
                "samples_per_second_median": {name: round(statistics.median(r)) for name, r in rates.items()},
                "samples_per_second_best": {name: round(max(r)) for name, r in rates.items()},
            }
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    text = json.dumps(
        {
            "settings": {"num_images": arguments.num_images, "rounds": arguments.rounds},
            "versions": versions,
            "results": results,
        },
        indent=2,
    )
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
