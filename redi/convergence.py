"""Compares how fast two kinds of runs converge: steps until a method reaches the final distance of a baseline.

python -m redi.convergence --baseline='runs/plain_*' --method='runs/redi_*' --run_dir=runs/convergence

The runs were trained with a monitor (monitor.gin) of equal settings; several of each are seeds. Prints the factor with
its spread over seeds, and writes convergence.json and convergence.png to --run_dir.
"""

import glob
import logging
import re
from pathlib import Path

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
log = logging.getLogger("redi")
# Bindings that decide what a monitored value means.
MEASURES = re.compile(
    r"Monitor\.|monitor/|evaluator/|held_out/|evaluate\.reference|Preprocessing\.|ImageFolder\.path|WebDataset\.shards"
)

flags.DEFINE_multi_string("baseline", [], "Folder of a run, or a pattern of several; may be repeated.")
flags.DEFINE_multi_string("method", [], "The same for the runs that are compared with the baseline.")
flags.DEFINE_string("metric", None, "Name of a monitored distance; default: the first that all runs have.")


def main(run_dir: Path) -> None:
    from redi.evaluation.convergence import convergence_factor, describe, plot, read_curve
    from redi.runtime.artefact import write_json

    folders = {side: _folders(side, getattr(FLAGS, side)) for side in ("baseline", "method")}
    metric = FLAGS.metric or _common_distance([*folders["baseline"], *folders["method"]])
    _warn_of_different_measures([*folders["baseline"], *folders["method"]])
    curves = {side: [read_curve(folder, metric) for folder in found] for side, found in folders.items()}
    result = convergence_factor(**curves)
    print(f"{metric}\n{describe(result)}", flush=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "convergence.json", {"metric": metric, **result})
    plot(**curves, metric=metric, result=result).savefig(run_dir / "convergence.png", dpi=130)
    log.info("picture: %s", run_dir / "convergence.png")


def _folders(side: str, patterns: list[str]) -> list[Path]:
    if not patterns:
        raise ValueError(f"--{side} is missing: name the folders of trained runs")
    folders = []
    for pattern in patterns:
        found = [Path(path) for path in sorted(glob.glob(pattern)) if (Path(path) / "log.jsonl").exists()]
        if not found:
            raise ValueError(f"--{side}={pattern} names no folder that holds a log.jsonl")
        folders += [path for path in found if path not in folders]
    return folders


def _warn_of_different_measures(folders: list[Path]) -> None:
    """Where the runs' configurations say that the monitors' numbers do not compare."""
    from redi.core import config

    measured = {}
    for folder in folders:
        path = folder / "config.gin"
        found = config.statements(path.read_text()) if path.exists() else {}
        measured[folder] = {key: value for key, value in found.items() if MEASURES.match(key)}
    first = measured[folders[0]]
    for folder, other in measured.items():
        if differing := sorted(key for key in first | other if first.get(key) != other.get(key)):
            log.warning("%s was measured otherwise than %s: %s", folder, folders[0], ", ".join(differing))


def _common_distance(folders: list[Path]) -> str:
    from redi.evaluation.convergence import PREFIX
    from redi.runtime.log import read_log

    names = [dict.fromkeys(key for entry in read_log(folder) for key in entry) for folder in folders]
    common = [name for name in names[0] if name.startswith(PREFIX) and all(name in other for other in names)]
    distances = [name for name in common if "distance" in name or "fid" in name]
    if not distances:
        raise ValueError("no monitored distance is in the logs of all these runs: see monitor.gin")
    return distances[0]


def console() -> None:
    command_line.run(main, __doc__, own_flags=("baseline", "method", "metric"))


if __name__ == "__main__":
    console()
