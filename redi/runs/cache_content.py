"""What the cache holds, and which runs use it."""

import json
import re
from collections.abc import Iterator
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


def cache_entries(cache: Path, folder: Path) -> Iterator[tuple[str, float, list[str]]]:
    """(folder in the cache, MiB, runs in `folder` that use it) of every fit, encoded data set and reference.

    A run uses what is made of images, weights and fits whose hashes all stand in the run's records.
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
            except (OSError, ValueError):  # damaged: it would be made again
                sources = {"unknown"}
            size = sum(one.stat().st_size for one in path.iterdir()) / 2**20
            yield f"{kind}/{path.name}", size, [run for run, known in hashes.items() if sources <= known]


def unfinished_runs(folder: Path) -> list[str]:
    """Runs with neither a checkpoint nor samples: what they use cannot be known."""
    runs = run_folders(folder)
    return [str(run) for run in runs if not list_checkpoints(run) and not (run / "samples").exists()]


def _hashes(*texts: str) -> set[str]:
    return {digest for text in texts for digest in re.findall(r"\b[0-9a-f]{64}\b", text)}
