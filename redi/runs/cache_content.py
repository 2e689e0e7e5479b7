"""What the cache holds, and which runs use it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from redi.runs.listing import run_folders
from redi.runtime.checkpoint import list_checkpoints

# Of each kind of entry, the file that says what it was made from, and where in it.
KINDS = {
    "encoded": ("manifest.json", ("dataset_fingerprint", "codec")),
    "encoders": ("record.json", ("provenance",)),
    "reducers": ("record.json", ("fitted_on",)),
    "references": ("record.json", ("fingerprint", "network")),
}


@dataclass
class CacheEntry:
    """A fit, an encoded data set, or features of reference images."""

    name: str  # its folder in the cache
    mib: float
    runs: list[str]  # that use it


def cache_entries(cache: Path, folder: Path) -> list[CacheEntry]:
    """What the cache holds, with the runs in `folder` that use it: whose records name every hash (of images, weights,
    fits) that it was made from."""
    hashes = {str(run.relative_to(folder.parent)): _hashes_of_run(run) for run in run_folders(folder)}
    entries = []
    for kind, (file, keys) in KINDS.items():
        for path in sorted((cache / kind).glob("[!.]*")):
            try:
                record = json.loads((path / file).read_text())
                sources = _hashes([record.get(key) for key in keys])
            except (OSError, ValueError):
                sources = {"unknown"}
            mib = sum(one.stat().st_size for one in path.iterdir()) / 2**20
            runs = [run for run, known in hashes.items() if sources <= known]
            entries.append(CacheEntry(f"{kind}/{path.name}", mib, runs))
    return entries


def _hashes_of_run(run: Path) -> set[str]:
    records = [folder / "record.json" for folder in list_checkpoints(run)[-1:]] + [run / "metrics.json"]
    return set().union(*(_hashes(path.read_text()) for path in records if path.exists()))


def _hashes(record) -> set[str]:
    return set(re.findall(r"\b[0-9a-f]{64}\b", record if isinstance(record, str) else json.dumps(record)))
