"""How much faster one kind of run converges than another."""

import glob
import logging
import re
from pathlib import Path

from redi.core import config
from redi.evaluation.convergence import PREFIX, convergence_factor, describe, read_curve
from redi.pages.curves import convergence_panel
from redi.pages.plots import save
from redi.runtime.artefact import write_json
from redi.runtime.checkpoint import newest_record
from redi.runtime.log import read_log
from redi.runtime.paths import local_path

log = logging.getLogger("redi")

# Bindings that decide what a monitored value means.
MEASURES = re.compile(r"Monitor\.|monitor/|evaluator/|held_out/|evaluate\.reference|Preprocessing\.")


def compare(baseline: list[Path], method: list[Path], to: Path, *, metric: str | None = None) -> str:
    """Write `convergence.json` and `convergence.png` to a folder -> the result as text. Folders of a side are seeds."""
    folders = {"baseline": baseline, "method": method}
    metric = metric or _common_distance([*baseline, *method])
    warn_of_different_measures([*baseline, *method])
    curves = {side: [read_curve(folder, metric) for folder in runs] for side, runs in folders.items()}
    result = convergence_factor(**curves)
    to.mkdir(parents=True, exist_ok=True)
    write_json(to / "convergence.json", {"metric": metric, **result})
    save(to / "convergence.png", [convergence_panel(**curves, metric=metric, result=result)])
    log.info("picture: %s", to / "convergence.png")
    return f"{metric}\n{describe(result)}"


def run_folders(side: str, patterns: list[str]) -> list[Path]:
    if not patterns:
        raise ValueError(f"--{side} is missing: name the folders of trained runs")
    folders = []
    for pattern in patterns:
        found = [Path(path) for path in sorted(glob.glob(str(local_path(pattern))))]
        found = [path for path in found if (path / "log.jsonl").exists()]
        if not found:
            raise ValueError(f"--{side}={pattern} names no folder that holds a log.jsonl")
        folders += [path for path in found if path not in folders]
    return folders


def warn_of_different_measures(folders: list[Path]) -> None:
    """Warn where the monitors' numbers do not compare, by the runs' configurations or because they saw other images,
    wherever these lay.
    """
    measured = {}
    for folder in folders:
        path = folder / "config.gin"
        found = config.statements(path.read_text()) if path.exists() else {}
        measured[folder] = {key: value for key, value in found.items() if MEASURES.match(key)}
        measured[folder]["other images"] = newest_record(folder).get("dataset_contents")
    first = measured[folders[0]]
    for folder, other in measured.items():
        if None in (first["other images"], other["other images"]):  # of an earlier version, which kept none
            other = other | {"other images": first["other images"]}
        if differing := sorted(key for key in first | other if first.get(key) != other.get(key)):
            log.warning("%s was measured otherwise than %s: %s", folder, folders[0], ", ".join(differing))


def _common_distance(folders: list[Path]) -> str:
    names = [dict.fromkeys(key for entry in read_log(folder) for key in entry) for folder in folders]
    common = [name for name in names[0] if name.startswith(PREFIX) and all(name in other for other in names)]
    distances = [name for name in common if "distance" in name or "fid" in name]
    if not distances:
        raise ValueError("no monitored distance is in the logs of all these runs: see monitor.gin")
    return distances[0]
