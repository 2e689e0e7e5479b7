"""Check that memory, open files, threads and child processes stay constant over 10,000 steps and images.

python benchmarks/long_run.py [--device auto|cpu|cuda] [--quick] [--out FILE] [--plot FILE]

Trains a small model on the digits for 10,000 steps with redi.train, once from a cache and once from images, with the
checkpoints, previews and logs of a long run, and samples 10,000 images with redi.sample. Each program is observed from
outside, through /proc, four times per second. The slope is a least-squares line through all observations after the
first fifth, when all imports and one-time allocations are done.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ledger import HERE, RESULTS, arguments, device_of, report

PLOT = HERE.parent / "docs" / "images" / "long_run.png"
KEPT_POINTS = 400  # stored points per curve
SETTLED = 0.2  # fraction at the start that the slope leaves out
GIN = """
include 'digits.gin'
train.batch_size = 32
train.log_every = 20
train.checkpoint_every = 500
train.preview_every = 500
train.preview_images = 20
generate.batch_size = 100
sample.images_per_part = 100
DomainEncoder.num_steps = 50
DiffusionTransformer.width = 32
DiffusionTransformer.depth = 2
EulerMaruyama.num_evaluations = 10
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--plot", type=Path, help="file for the plot; default: docs/images/long_run.png")
    given = parser.parse_args()
    device = device_of(given)
    if not Path("/proc/self/status").exists():
        sys.exit("long_run.py reads /proc and needs Linux")
    count = 200 if given.quick else 10_000
    curves: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        counts = f"train.num_steps = {count}\nsample.num_images = {count}\ntrain.device = '{device}'\n"
        (Path(folder) / "long.gin").write_text(GIN + counts)
        for name, program, run, bindings in (
            ("training from a cache", "train", "cached", ()),
            ("training from images", "train", "images", ("prepare.cache = False",)),
            ("sampling", "sample", "cached", ()),
        ):
            print(f"{name} ...", flush=True)
            progress = logged_step if program == "train" else drawn_images
            curves[name] = watched(program, Path(folder), run, bindings, progress)
    rows = [row_of(name, curve) for name, curve in curves.items()]
    plotted = given.plot or (PLOT if device == "cpu" else PLOT.with_stem(f"long_run_{device}"))
    stored = RESULTS / f"long_run.{device}.curves.json"
    if not given.quick:
        thinned = {name: columns(curve[:: -(-len(curve) // KEPT_POINTS)]) for name, curve in curves.items()}
        stored.write_text(json.dumps(thinned) + "\n")
    if not given.quick or given.plot:
        plot(curves, plotted)
    report(
        "long_run",
        device=device,
        settings={"steps": count, "images": count, "batch_size": 32, "checkpoint_every": 500, "preview_every": 500},
        rows=rows,
        notes=[
            "slopes: of a least-squares line through all observations after the first fifth; anonymous memory: "
            "resident memory without mapped files, such as the cache and library code; the lowest numbers of files "
            "and threads are observed at the program's end",
            f"curves: [{plotted.name}](../docs/images/{plotted.name}), [as numbers](results/{stored.name})",
        ],
        arguments=given,
    )


def watched(
    program: str, folder: Path, run: str, bindings: tuple[str, ...], progress: Callable[[Path], int]
) -> list[dict]:
    """Run a program to its end; return the observations, each with the program's progress."""
    flags = f"--gin_file={folder / 'long.gin'}", f"--run_dir={folder / run}"
    command = [sys.executable, "-m", f"redi.{program}", *flags]
    command += [f"--gin_bindings={binding}" for binding in bindings]
    environment = os.environ | {"REDI_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    curve: list[dict] = []
    with open(folder / "stderr.txt", "w+") as said:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            seen = look(process.pid)
            if seen and (done := progress(folder / run)):
                curve.append({"done": done, **seen})
            time.sleep(0.25)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{program} failed ({process.returncode}):\n{said.read()[-2000:]}")
    return curve


def look(pid: int) -> dict | None:
    """Return the current resources of a process, or None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        return {
            "resident_mib": int(fields["VmRSS"].split()[0]) / 1024,
            "anonymous_mib": int(fields["RssAnon"].split()[0]) / 1024,
            "open_files": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": int(fields["Threads"]),
            "children": sum(map(len, children)),
        }
    except (OSError, KeyError):  # the process is ending; a zombie has no memory
        return None


def logged_step(run_dir: Path) -> int:
    """Return the step of the last complete line of the log."""
    path = run_dir / "log.jsonl"
    lines = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def drawn_images(run_dir: Path) -> int:
    """Return the number of images in the finished parts."""
    names = (name for _, _, names in os.walk(run_dir) for name in names)  # os.walk tolerates folders that vanish
    return 100 * sum(name.startswith("part-") and name.endswith(".safetensors") for name in names)


def columns(curve: list[dict]) -> dict[str, list]:
    return {name: [round(seen[name], 2) for seen in curve] for name in curve[0]}


def row_of(name: str, curve: list[dict]) -> dict:
    """Return the medians near the beginning and at the end, and the growth per 1,000 steps or images."""
    seen = {key: np.array(values, dtype=float) for key, values in columns(curve).items()}
    settled = seen["done"] >= SETTLED * seen["done"].max()
    done = seen["done"][settled]

    def slope(what: str) -> float:
        return float(np.polyfit(done, seen[what][settled], 1)[0] * 1000) if len(set(done)) > 1 else 0.0

    row = {"what": name, "count": int(done[-1]), "observations": len(curve)}
    total = seen["done"].max()
    for where, low, high in (("third", 0.2, 0.3), ("last", 0.9, 1.0)):
        tenth = (seen["done"] >= low * total) & (seen["done"] <= high * total)
        row[f"resident_mib_{where}_tenth"] = float(np.median(seen["resident_mib"][tenth]))
    row |= {"mib_per_1000": slope("resident_mib"), "anonymous_mib_per_1000": slope("anonymous_mib")}
    for what in ("open_files", "threads", "children"):
        low, high = int(seen[what][settled].min()), int(seen[what][settled].max())
        row[what] = str(low) if low == high else f"{low} to {high}"
    return row


def plot(curves: dict[str, list[dict]], path: Path) -> None:
    """Plot resident memory (top) and open files and threads (bottom) against steps or images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves), 5.0), layout="constrained")
    panels = figure.subplots(2, len(curves), sharex="col", sharey="row", squeeze=False)
    for column, (name, curve) in enumerate(curves.items()):
        seen = columns(curve)
        upper, lower = panels[:, column]
        upper.plot(seen["done"], seen["resident_mib"], label="resident")
        upper.plot(seen["done"], seen["anonymous_mib"], label="without mapped files")
        upper.set(title=name, ylim=(0, None))
        for what in ("open_files", "threads", "children"):
            lower.plot(seen["done"], seen[what], label=what.replace("_", " "))
        lower.set(xlabel="images" if name == "sampling" else "steps", ylim=(0, None))
    panels[0, 0].set_ylabel("MiB")
    panels[1, 0].set_ylabel("number")
    for panel in panels[:, 0]:
        panel.legend(loc="center", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
