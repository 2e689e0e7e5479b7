"""Samples on disk, as `redi.evaluation.samples.sample.sample` wrote them: read part by part, every file checked."""

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
    """The samples of a run: one set of `num_images` for every seed, one after the other.

    Attributes:
        record: how they were drawn, and the parts that hold them.
        sha256: one hash of all that was drawn, whether it was kept or not.
        has_images, has_x: whether images and joint states were kept (`sample.keep`).
        sets: of every seed {"seed", "start", "stop"}, positions in [0, len).

    Raises BrokenArtefact where files are missing, cut short or of another version; that their bytes are as they were
    written is checked when they are read.
    """

    def __init__(self, folder: str | Path):
        self.folder = local_path(folder)
        self.record = read_record(self.folder)
        if not {"parts", "seeds", "num_images", "kept", "samples_sha256"} <= set(self.record):
            raise BrokenArtefact(f"{self.folder} was written by another version of redi: run redi.sample again")
        if not _is_sound(self.record):
            raise BrokenArtefact(f"{self.folder / RECORD} was altered, for it makes no sense: run redi.sample again")
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
        """(N,) int64."""
        return torch.cat([self._labels(part) for part in self.record["parts"]])

    def _labels(self, part: dict) -> Tensor:
        path = self.folder / part["file"]
        try:
            with safe_open(path, framework="pt") as file:
                labels = file.get_tensor("labels")
        except SafetensorError as error:
            raise BrokenArtefact(f"{path} is not a safetensors file with labels: {error}") from None
        if tensors_sha256({"labels": labels}) != part["labels_sha256"]:
            raise BrokenArtefact(f"{path} was altered after it was written: its labels are others")
        return labels

    def part(self, index: int) -> dict[str, Tensor]:
        """Labels (n,), and of images (n, 3, S, S) uint8 and x (n, C, H, W) what was kept. Raises BrokenArtefact."""
        file = self.record["parts"][index]["file"]
        path, expected = self.folder / file, self.record["files"][file]
        check_size(path, expected)
        if sha256(path) != expected["sha256"]:
            raise BrokenArtefact(f"{path} was altered after it was written: its SHA-256 differs from {RECORD}")
        return load_tensors(path)

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """All parts in order, one in memory at a time."""
        return (self.part(index) for index in range(len(self.record["parts"])))

    def take(self, positions: Sequence[int] | Tensor) -> Generated:
        """Some of them, in the order of `positions`; what was not kept is None.

        Raises IndexError for a position outside [0, len), and BrokenArtefact.
        """
        wanted = torch.as_tensor(positions, dtype=torch.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"positions {wanted.min()} to {wanted.max()} of {len(self)} samples")
        lengths = torch.tensor([part["stop"] - part["start"] for part in self.record["parts"]])
        ends = lengths.cumsum(0)
        owners = torch.searchsorted(ends, wanted, right=True)
        rows, places = [], [torch.empty(0, dtype=torch.int64)]
        for owner in owners.unique().tolist():
            places.append((owners == owner).nonzero().flatten())
            inside = wanted[places[-1]] - (ends[owner] - lengths[owner])
            rows.append({name: tensor[inside] for name, tensor in self.part(owner).items()})
        return self._joined(rows, torch.cat(places).argsort())

    def read(self) -> Generated:
        """All of them in memory; what was not kept is None. Raises BrokenArtefact."""
        return self._joined(list(self.parts()), torch.arange(len(self)))

    def _joined(self, rows: list[dict[str, Tensor]], order: Tensor) -> Generated:
        tensors = {name: torch.cat([row[name] for row in rows])[order] for name in rows[0]} if rows else {}
        labels = tensors.get("labels", torch.empty(0, dtype=torch.int64))
        return Generated(tensors.get("images"), tensors.get("x"), labels, self.record)

    def verify(self) -> None:
        """Reads every file. Raises BrokenArtefact naming the first that is not as it was written."""
        for _ in self.parts():
            pass


def _is_sound(record: dict) -> bool:
    """Whether the entries that are counted with are numbers, and every part is one of the files."""
    try:
        places = [(part["start"], part["stop"], part["file"] in record["files"]) for part in record["parts"]]
        numbers = [record["num_images"], *record["seeds"], *(number for *place, _ in places for number in place)]
        known = set(record["kept"]) <= {"images", "x"}
        return known and all(type(number) is int for number in numbers) and all(listed for *_, listed in places)
    except (TypeError, KeyError):
        return False


def load_samples(run_dir: str | Path) -> Samples:
    """Opens what `sample` wrote. Raises ValueError where nothing was sampled yet or the files are damaged."""
    folder = local_path(run_dir) / FOLDER
    if not folder.exists():
        raise ValueError(f"{folder.parent} holds no samples: run redi.sample --run_dir={folder.parent} first")
    return Samples(folder)
