"""Read the samples written by `redi.evaluation.samples.sample.sample`, part by part, and verify every file."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from redi.runtime.artefact import RECORD, check_size, load_tensors, read_record
from redi.runtime.checksums import BrokenArtefact, sha256, tensors_sha256
from redi.runtime.paths import local_path
from redi.sampling.generate import Generated

FOLDER = "samples"


class Samples:
    """The samples of a run: one set of `num_images` per seed, concatenated.

    Attributes:
        record: the sampling settings and the parts.
        sha256: hash of all samples, including images and x that were not kept.
        has_images, has_x: whether images and joint states were kept (`sample.keep`).
        sets: {"seed", "start", "stop"} of every seed; positions in [0, len).

    Raises BrokenArtefact: files are missing, truncated or of another version. Their hashes are checked when they are
    read.
    """

    def __init__(self, folder: str | Path):
        self.folder = local_path(folder)
        self.record = read_record(self.folder)
        if not {"parts", "seeds", "num_images", "kept", "samples_sha256"} <= set(self.record):
            raise BrokenArtefact(f"{self.folder} was written by another version of redi: run redi.sample again")
        if not _is_sound(self.record):
            raise BrokenArtefact(f"{self.folder / RECORD} was altered and is inconsistent: run redi.sample again")
        for file, expected in self.record["files"].items():
            check_size(self.folder / file, expected)
        self.sha256, kept = self.record["samples_sha256"], self.record["kept"]
        self.has_images, self.has_x = "images" in kept, "x" in kept
        each, seeds = self.record["num_images"], self.record["seeds"]
        self.sets = [{"seed": seed, "start": i * each, "stop": (i + 1) * each} for i, seed in enumerate(seeds)]

    def __len__(self) -> int:
        return self.record["num_images"] * len(self.sets)

    @cached_property
    def labels(self) -> Tensor:
        """The labels (N,) int64."""
        return torch.cat([self._labels(part) for part in self.record["parts"]])

    def _labels(self, part: dict) -> Tensor:
        path = self.folder / part["file"]
        try:
            with safe_open(path, framework="pt") as file:
                labels = file.get_tensor("labels")
        except SafetensorError as error:
            raise BrokenArtefact(f"{path} is not a safetensors file with labels: {error}") from None
        if tensors_sha256({"labels": labels}) != part["labels_sha256"]:
            raise BrokenArtefact(f"{path} was altered after it was written: its labels' hash differs from {RECORD}")
        return labels

    def part(self, index: int) -> dict[str, Tensor]:
        """Read labels (n,) and, if kept, images (n, 3, S, S) uint8 and x (n, C, H, W). Raises BrokenArtefact."""
        file = self.record["parts"][index]["file"]
        path, expected = self.folder / file, self.record["files"][file]
        check_size(path, expected)
        if sha256(path) != expected["sha256"]:
            raise BrokenArtefact(f"{path} was altered after it was written: its SHA-256 differs from {RECORD}")
        return load_tensors(path)

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """Iterate over all parts in order, with one in memory at a time."""
        return (self.part(index) for index in range(len(self.record["parts"])))

    def take(self, positions: Sequence[int] | Tensor) -> Generated:
        """Read the samples at `positions`, in this order. Images or x that were not kept are None."""
        index = torch.as_tensor(positions, dtype=torch.int64)
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"positions {index.min()} to {index.max()} are not in [0, {len(self)})")
        lengths = torch.tensor([part["stop"] - part["start"] for part in self.record["parts"]])
        ends = lengths.cumsum(0)
        owners = torch.searchsorted(ends, index, right=True)
        rows, places = [], [torch.empty(0, dtype=torch.int64)]
        for owner in owners.unique().tolist():
            places.append((owners == owner).nonzero().flatten())
            inside = index[places[-1]] - (ends[owner] - lengths[owner])
            rows.append({name: tensor[inside] for name, tensor in self.part(owner).items()})
        return self._joined(rows, torch.cat(places).argsort())

    def read(self) -> Generated:
        """Read all samples into memory. Images or x that were not kept are None. Raises BrokenArtefact."""
        return self._joined(list(self.parts()), torch.arange(len(self)))

    def _joined(self, rows: list[dict[str, Tensor]], order: Tensor) -> Generated:
        tensors = {name: torch.cat([row[name] for row in rows])[order] for name in rows[0]} if rows else {}
        labels = tensors.get("labels", torch.empty(0, dtype=torch.int64))
        images, x = tensors.get("images"), tensors.get("x")
        return Generated(images, x, labels, self.record)  # type: ignore[arg-type]  # None if they were not kept

    def verify(self) -> None:
        """Read every file. Raises BrokenArtefact naming the first damaged one."""
        for _ in self.parts():
            pass


def _is_sound(record: dict) -> bool:
    """Return whether counts and positions are integers, and every part is listed among the files."""
    try:
        places = [(part["start"], part["stop"], part["file"] in record["files"]) for part in record["parts"]]
        numbers = [record["num_images"], *record["seeds"], *(number for *place, _ in places for number in place)]
        valid = set(record["kept"]) <= {"images", "x"}
        return valid and all(type(number) is int for number in numbers) and all(listed for *_, listed in places)
    except (TypeError, KeyError):
        return False


def load_samples(run_dir: str | Path) -> Samples:
    """Open the samples of a run. Raises ValueError if there are none or the files are damaged."""
    folder = local_path(run_dir) / FOLDER
    if not folder.exists():
        raise ValueError(f"{folder.parent} holds no samples: run redi.sample --run_dir={folder.parent} first")
    return Samples(folder)
