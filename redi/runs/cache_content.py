"""The entries of the cache, and the runs that use them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from redi.runs.listing import run_folders
from redi.runtime.checkpoint import list_checkpoints

# {kind of entry: (file that records its sources, keys of the sources in that file)}
KINDS = {
    "encoded": ("manifest.json", ("dataset_fingerprint", "codec")),
    "encoders": ("record.json", ("provenance",)),
    "reducers": ("record.json", ("fitted_on",)),
    "references": ("record.json", ("fingerprint", "network")),
}


def cache_entries(cache: Path, folder: Path) -> Iterator[tuple[str, float, list[str]]]:
    """Yield (name, MiB, runs in `folder` that use it) of every entry in the cache.

    A run uses an entry if its records contain the hashes of all images, weights and fits the entry was made from.
    """
    hashes = {}
    for run in run_folders(folder):
        records = [*(checkpoint / "record.json" for checkpoint in list_checkpoints(run)[-1:]), run / "metrics.json"]
        hashes[str(run.relative_to(folder.parent))] = _hashes(*(path.read_text() for path in records if path.exists()))
    for kind, (file, keys) in KINDS.items():
        for path in sorted((cache / kind).glob("[!.]*")):
            try:
                record = json.loads((path / file).read_text())
                sources = _hashes(json.dumps([record.get(key) for key in keys]))
            except (OSError, ValueError):  # damaged, so no run can use it
                sources = {"unknown"}
            size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
            yield f"{kind}/{path.name}", size, [run for run, recorded in hashes.items() if sources <= recorded]


def unfinished_runs(folder: Path) -> list[str]:
    """Return the runs with neither checkpoint nor samples. Their cache entries are unknown."""
    runs = run_folders(folder)
    return [str(run) for run in runs if not list_checkpoints(run) and not (run / "samples").exists()]


def _hashes(*texts: str) -> set[str]:
    return {digest for text in texts for digest in re.findall(r"\b[0-9a-f]{64}\b", text)}
