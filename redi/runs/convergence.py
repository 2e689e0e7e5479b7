"""Compare how fast two groups of runs converge."""

import glob
import logging
import re
from pathlib import Path
from typing import Any

from redi.core import config
from redi.evaluation.convergence import PREFIX, convergence_factor, format_convergence, read_curve
from redi.pages.curves import convergence_panel
from redi.pages.plots import save
from redi.runtime.artefact import write_json
from redi.runtime.checkpoint import newest_record
from redi.runtime.log import read_log
from redi.runtime.paths import local_path

log = logging.getLogger("redi")

# Bindings that monitored values depend on.
MEASURES = re.compile(r"Monitor\.|monitor/|evaluator/|lite2/|held_out/|evaluate\.reference|Preprocessing\.")


def compare(baseline: list[Path], method: list[Path], to: Path, *, metric: str | None = None) -> str:
    """Write `convergence.json` and `convergence.png` to `to`; return the result as text. Runs of a side are seeds."""
    folders = {"baseline": baseline, "method": method}
    metric = metric or _common_distance([*baseline, *method])
    warn_of_different_measures([*baseline, *method])
    curves = {side: [read_curve(folder, metric) for folder in runs] for side, runs in folders.items()}
    result = convergence_factor(**curves)
    to.mkdir(parents=True, exist_ok=True)
    write_json(to / "convergence.json", {"metric": metric, **result})
    save(to / "convergence.png", [convergence_panel(**curves, metric=metric, result=result)])
    log.info("wrote %s", to / "convergence.png")
    return f"{metric}\n{format_convergence(result)}"


def run_folders(side: str, patterns: list[str]) -> list[Path]:
    """Return the run folders that match the glob patterns of the flag --`side`."""
    if not patterns:
        raise ValueError(f"--{side} is missing: pass the folders of trained runs")
    folders: list[Path] = []
    for pattern in patterns:
        matches = [Path(path) for path in sorted(glob.glob(str(local_path(pattern))))]
        matches = [path for path in matches if (path / "log.jsonl").exists()]
        if not matches:
            raise ValueError(f"--{side}={pattern} matches no folder with a log.jsonl: pass the folders of trained runs")
        folders += [path for path in matches if path not in folders]
    return folders


def warn_of_different_measures(folders: list[Path]) -> None:
    """Warn if monitored values are not comparable: different monitor bindings or different images."""
    measured: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        path = folder / "config.gin"
        statements = config.statements(path.read_text()) if path.exists() else {}
        measured[folder] = {key: value for key, value in statements.items() if MEASURES.match(key)}
        measured[folder]["images"] = newest_record(folder).get("dataset_contents")
    first = measured[folders[0]]
    for folder, other in measured.items():
        if None in (first["images"], other["images"]):  # older versions did not record the images
            other = other | {"images": first["images"]}
        if differing := sorted(key for key in first | other if first.get(key) != other.get(key)):
            names = ", ".join(differing)
            log.warning("%s and %s are not comparable, because monitor settings differ: %s", folder, folders[0], names)


def _common_distance(folders: list[Path]) -> str:
    names = [dict.fromkeys(key for entry in read_log(folder) for key in entry) for folder in folders]
    common = [name for name in names[0] if name.startswith(PREFIX) and all(name in other for other in names)]
    distances = [name for name in common if "distance" in name or "fid" in name]
    if not distances:
        raise ValueError("the logs of these runs have no monitored distance in common: train them with monitor.gin")
    return distances[0]
