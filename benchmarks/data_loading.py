"""Measure how many cached samples per second reach the training loop. The goal is 20,000 on two cores.

    python benchmarks/data_loading.py                      # some minutes, 6 GB on the disk of --folder
    python benchmarks/data_loading.py --quick              # seconds

Samples are those of ImageNet at 256 pixels, 20 KB each: SD moments 8x32x32 and features 8x16x16 in float16, and a
label. Every number is one pass over the data set in batches of 256 through `redi.data.loader.batches`, without further
work; on a GPU the copy to it is included. The variants take turns. "cold" starts after the files were dropped from the
page cache; caches of the disk or of a virtual machine's host cannot be dropped, so a real disk may be slower.
"streamed" starts with an empty local folder with room for two windows of four shards, and includes downloading and
verifying every byte. The HTTP server runs on the same cores.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ledger import Timing, arguments, device_of, report

from redi.data.cache.cache import Cache
from redi.data.cache.stream import CacheStream
from redi.data.cache.write import write_cache
from redi.data.datasets import Dataset
from redi.data.loader import batches
from redi.models.autoencoders import Autoencoder
from redi.models.codec import JointCodec
from redi.models.encoders import Encoder

BATCH, GOAL = 256, 20_000  # the goal: samples a second, on two cores
SAMPLE_BYTES = (8 * 32 * 32 + 8 * 16 * 16) * 2


class Numbers(Dataset):
    """One-pixel images. The stored values come from `Moments` and `Features`."""

    def __init__(self, count: int):
        names = [f"{i:06d}" for i in range(count)]
        super().__init__(names=names, labels=np.arange(count) % 10, class_names=list("0123456789"))

    def load(self, index: int) -> np.ndarray:
        return np.zeros((1, 1, 3), np.uint8)

    def provenance(self) -> dict:
        return {"dataset": "Numbers"}


class Moments(Autoencoder):
    """The same random moments (N, 8, 32, 32) float16 for every batch."""

    channels, downsample = 4, 1
    stored = torch.randn(BATCH, 8, 32, 32).half()

    def moments(self, images):
        return self.stored[: len(images)].clone()

    def latents(self, moments):
        return moments.float()[:, :4]

    def decode(self, latents):
        raise TypeError("these moments are noise and cannot be decoded")

    def provenance(self) -> dict:
        return {"autoencoder": "Moments"}


class Features(Encoder):
    """The same random features (N, 8, 16, 16) for every batch."""

    dim = 8
    stored = torch.randn(BATCH, 8, 16, 16)

    def forward(self, images):
        return self.stored[: len(images)].clone()

    def provenance(self) -> dict:
        return {"encoder": "Features"}


def passed(source, shuffle: str, mode: str, device: str) -> float:
    """Return the seconds of one pass."""
    start = time.perf_counter()
    found = batches(
        source, batch_size=BATCH, seed=0, start=0, stop=len(source) // BATCH, shuffle=shuffle, pin=mode == "pinned"
    )
    for batch in found:
        if mode != "read":
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    if mode != "read":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def warm(cache: Cache, *, shuffle: str, mode: str = "read", device: str = "cpu") -> float:
    return passed(cache, shuffle, mode, device)


def cold(folder: Path, *, shuffle: str) -> float:
    for path in folder.iterdir():  # before they are memory-mapped: mapped pages would stay in the page cache
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return passed(Cache(folder), shuffle, "read", "cpu")


def streamed(url: str, local: Path, window: int) -> float:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=local) as folder:
        stream = CacheStream(url, folder=Path(folder), max_bytes=4 * window * SAMPLE_BYTES, window=window)
        passed(stream, "shards", "read", "cpu")
    return time.perf_counter() - start


class Files(torch.utils.data.Dataset):
    """Two .npy files per sample, the layout of most published code."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        for i in range(count):
            np.save(folder / f"{i}.image.npy", Moments.stored[i % BATCH].numpy())
            np.save(folder / f"{i}.features.npy", Features.stored[i % BATCH].half().numpy())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int):
        return np.load(self.folder / f"{i}.image.npy"), np.load(self.folder / f"{i}.features.npy"), i % 10


def data_loader(files: Files, num_images: int) -> float:
    """Return the seconds of a full pass, scaled from a pass over `files`."""
    loader = torch.utils.data.DataLoader(files, batch_size=BATCH, shuffle=True, num_workers=2)
    start = time.perf_counter()
    for _ in loader:
        pass
    return (time.perf_counter() - start) * num_images / len(files)


@contextlib.contextmanager
def http_server(folder: Path) -> Iterator[str]:
    """Yield the URL of a server that runs in a separate process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def take_turns(variants: dict[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """Run variants like `ledger.side_by_side`; each returns its own seconds."""
    for name in variants:
        variants[name]()  # fills the page cache
    seconds = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            seconds[name].append(variants[name]())
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, help="folder for temporary files; default: the system's")
    parser.add_argument("--num_images", type=int, default=65_536)
    parser.add_argument("--rows_per_shard", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    device = device_of(given)
    if given.quick:
        given.num_images, given.rows_per_shard, given.rounds = 4096, 512, 1
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        rows = measure(given, device, Path(folder))
    settings = {"num_images": given.num_images, "batch_size": BATCH, "rows_per_shard": given.rows_per_shard}
    notes = [
        f"passes over {given.num_images} samples of 20 KB in batches of {BATCH}; low and high of {given.rounds} rounds",
        "`ratio_to_files`: relative to a DataLoader with two workers that reads two .npy files per sample, warm "
        "page cache",
        "streamed: starts from an empty local folder; every byte is downloaded and verified; the HTTP server "
        "shares the two cores",
    ]
    report("data_loading", device=device, settings=settings, rows=rows, notes=notes, arguments=given)


def measure(given, device: str, folder: Path) -> list[dict]:
    images, codec = Numbers(given.num_images), JointCodec(autoencoder=Moments(), alignment=Features())
    write = partial(write_cache, codec=codec, dataset=images, rows_per_shard=given.rows_per_shard)
    plain, mirrored = write(folder / "plain"), write(folder / "mirrored", mirror=True)
    (folder / "files").mkdir()
    files = Files(folder / "files", min(8192, given.num_images))
    window = 4 * given.rows_per_shard
    variants: dict[str, Callable[[], float]] = {}
    for shuffle in ("global", "shards"):
        variants[f"{shuffle}, warm"] = partial(warm, plain, shuffle=shuffle)
        variants[f"{shuffle}, mirrored, warm"] = partial(warm, mirrored, shuffle=shuffle)
    if hasattr(os, "posix_fadvise"):
        shutil.copytree(folder / "plain", folder / "cold")  # files that no process has mapped
        for shuffle in ("global", "shards"):
            variants[f"{shuffle}, cold"] = partial(cold, folder / "cold", shuffle=shuffle)
    if device == "cuda":
        for mode in ("pageable", "pinned"):
            variants[f"shards, warm, {mode}, to the GPU"] = partial(
                warm, plain, shuffle="shards", mode=mode, device=device
            )
    with http_server(folder / "plain") as url:
        variants["shards, streamed from file://"] = partial(streamed, f"file://{folder / 'plain'}", folder, window)
        variants["shards, streamed from http://"] = partial(streamed, url, folder, window)
        variants["DataLoader, a file per tensor"] = partial(data_loader, files, given.num_images)
        timings = take_turns(variants, given.rounds)
    files_alone, num_samples = timings["DataLoader, a file per tensor"], given.num_images // BATCH * BATCH
    return [
        {
            "variant": name,
            "samples_per_second": round(num_samples / t.median),
            "low": round(num_samples / t.high),
            "high": round(num_samples / t.low),
            "ratio_to_goal": round(num_samples / t.median / GOAL, 2),
            "ratio_to_files": round(t.faster_than(files_alone), 1),
        }
        for name, t in timings.items()
    ]


if __name__ == "__main__":
    main()
