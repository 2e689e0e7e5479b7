"""Write the reference curve of a preset, <preset>.jsonl beside this file, from finished runs that differ in the seed.

python experiments/curves/make.py runs/seed0 runs/seed1 runs/seed2 --preset digits_pretrained

The first line describes the runs. Every other line has a step and, for each channel group, the loss of each seed: its
mean over the steps since the line before.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

import redi
from redi.core.gin_files import statements
from redi.pages.reference import read_curve
from redi.runtime.checkpoint import newest_record
from redi.runtime.log import read_log

HERE = Path(__file__).parent


def losses(run: Path, groups: list[str], every: int) -> dict[int, dict[str, float]]:
    """Return {step: {channel group: mean loss over the last `every` steps}}."""
    lines = {line["step"]: line for line in read_log(run) if groups[0] in line}
    log_every = min(lines, default=0)
    if not log_every or every % log_every:
        raise ValueError(f"--every = {every}: must be a multiple of train.log_every = {log_every} of {run}")
    means = {}
    for step in range(every, max(lines) + 1, every):
        part = [lines.get(one, {}) for one in range(step - every + log_every, step + 1, log_every)]
        if any(line.get(group) is None for line in part for group in groups):
            raise ValueError(f"{run}/log.jsonl: must have every loss up to step {step}; train again in another folder")
        means[step] = {group: statistics.fmean(line[group] for line in part) for group in groups}
    return means


def settings(run: Path) -> dict[str, str]:
    """Return the bindings of a run without its seeds."""
    bindings = statements((run / "config.gin").read_text())
    return {name: value for name, value in bindings.items() if not name.lower().endswith("seed")}


def curve(runs: list[Path], preset: str, every: int) -> list[dict]:
    """Return the lines of the file."""
    records = [newest_record(run) for run in runs]
    if not all(records):
        raise ValueError(f"{runs[records.index({})]}: must be a finished run; it holds no undamaged checkpoint")
    groups, seeds = list(records[0]["model_arguments"]["channels"]), [record["seed"] for record in records]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs have the seeds {seeds}: must differ; pass one run of each seed")
    for run in runs[1:]:
        if different := {name for name, _ in settings(run).items() ^ settings(runs[0]).items()}:
            names = ", ".join(sorted(different))
            raise ValueError(f"{run} and {runs[0]}: must differ in the seed alone, not in {names}")
    means = [losses(run, groups, every) for run in runs]
    if any(one.keys() != means[0].keys() for one in means):
        raise ValueError(f"the runs end at the steps {[max(one, default=0) for one in means]}: train all to the same")
    sessions = [s for run in runs for s in json.loads((run / "training.json").read_text())["sessions"]]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True).stdout
    about = {"preset": preset, "seeds": seeds, "redi": redi.__version__, "commit": commit.strip()}
    about |= {"images": records[0].get("dataset_contents"), "machine": sorted({one["device"] for one in sessions})}
    return [about, *({"step": step} | {group: [float(f"{one[step][group]:.5g}") for one in means] for group in groups}
                     for step in means[0])]  # fmt: skip


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="the folders of finished runs, one for each seed")
    parser.add_argument("--preset", required=True, help="the name of the gin file, without .gin")
    parser.add_argument("--every", type=int, default=50, help="steps between the lines")
    parser.add_argument("--folder", type=Path, default=HERE, help="default: the shipped curves")
    options = parser.parse_args()
    try:
        lines = curve(options.runs, options.preset, options.every)
    except ValueError as error:
        parser.error(str(error))
    path = options.folder / f"{options.preset}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"wrote {path}: {len(read_curve(path.resolve()).steps)} steps, {len(lines[0]['seeds'])} seeds")


if __name__ == "__main__":
    main()
