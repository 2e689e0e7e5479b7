"""Shared by all benchmarks: arguments, side-by-side timing, separate processes, a table and a JSON file.

    parser = arguments(__doc__)  # --device, --quick, --out; add your own
    given = parser.parse_args()
    device = device_of(given)  # "cpu" or "cuda"
    timings = side_by_side({"plain": plain, "fast": fast}, rounds=10, warmup=2, device=device)
    plain = timings["plain"]
    rows = [{"variant": name, **t.columns(), "ratio_to_plain": t.faster_than(plain)} for name, t in timings.items()]
    report("train_step", device=device, settings={...}, rows=rows, notes=[...], arguments=given)

Run each script of this folder directly: `python benchmarks/train_step.py`.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import environment, peak_memory_gib
from markdown_table import tables

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def arguments(doc: str) -> argparse.ArgumentParser:
    """Return a parser with --device, --quick and --out. Its help is the benchmark's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="run for seconds, not minutes, to test that it works")
    parser.add_argument("--out", type=Path, help="file for the results; default: results/")
    return parser


def device_of(given: argparse.Namespace) -> str:
    """Return 'cpu' or 'cuda'. 'auto' chooses the GPU if there is one."""
    import torch

    if given.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no GPU")
    return given.device


@dataclass(frozen=True)
class Timing:
    """The seconds of one variant in every round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        return min(self.seconds)

    @property
    def high(self) -> float:
        return max(self.seconds)

    @property
    def spread(self) -> float:
        """(high - low) / median."""
        return (self.high - self.low) / self.median

    def faster_than(self, other: "Timing") -> float:
        """Return the speed-up over another variant of the same rounds: the median of the per-round ratios.

        The drift of the machine's speed cancels in these.
        """
        return statistics.median(theirs / own for own, theirs in zip(self.seconds, other.seconds, strict=True))

    def columns(self, what: str = "step") -> dict[str, float]:
        """{"step_seconds": median, "low_seconds": ..., "high_seconds": ...}"""
        return {f"{what}_seconds": self.median, "low_seconds": self.low, "high_seconds": self.high}


def side_by_side(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int, device: str = "cpu"
) -> dict[str, Timing]:
    """Time each call once per round, so that a drift of the machine's speed affects all variants alike.

    Every other round runs in reverse order, so that no variant always follows the same one. On CUDA the device is
    synchronised before and after every call.

    Args:
        warmup: calls of each variant that are not counted, for compilation, caches and clocks.
    """
    wait = _synchronize(device)
    for call in calls.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            wait()
            start = time.perf_counter()
            calls[name]()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def in_process(function: str | Callable, *, script: str | Path | None = None, **settings) -> dict:
    """Call a function of the benchmark in a new process; return its result with the peak memory of the process.

    Args:
        function: a module-level function of the running script (or of `script`), or its name; it returns a dict.
        settings: its keyword arguments, JSON.

    Returns:
        The dict, and "peak_memory_gib" where the function does not set it: resident memory, on a GPU what torch's
        allocator held at most.

    Raises:
        RuntimeError: the process failed; the last line of what it said, and that it ran out of memory where it did.
    """
    name = function if isinstance(function, str) else function.__name__
    script = Path(script or getattr(function, "__globals__", {}).get("__file__") or sys.modules["__main__"].__file__)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, __file__, str(script.resolve()), name, json.dumps(settings), str(out)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            why = "killed: out of memory?" if done.returncode == -9 else said[-1] if said else "no message"
            raise RuntimeError(f"{name} failed ({done.returncode}): {why[:300]}")
        return json.loads(out.read_text())


def report(
    name: str,
    *,
    device: str,
    settings: dict,
    rows: Sequence[Mapping[str, object]],
    notes: Sequence[str] = (),
    arguments: argparse.Namespace,
    keep_others: bool = False,
) -> Path | None:
    """Prints the table and writes results/<name>.<cpu|cuda>.json, or the file of --out; --quick alone writes none.

    Args:
        rows: flat dicts; the keys are the columns, in snake_case with their unit. `measurement` in a row groups rows
            into tables of their own.
        keep_others: rows of other measurements stay as the file has them, if machine, versions and commit are the same.
    """
    path = arguments.out or RESULTS / f"{name}.{str(device).split(':')[0]}.json"
    result = {
        "benchmark": name,
        "command": " ".join(["python", f"benchmarks/{name}.py", *sys.argv[1:]]),
        "environment": environment(device),
        "settings": settings,
        "rows": [dict(row) for row in rows],
        "notes": list(notes),
    }
    print(f"\n{name}, {device}\n\n{tables(rows)}\n", *(f"- {note}" for note in notes), sep="\n", flush=True)
    if arguments.quick and arguments.out is None:
        return None
    if keep_others:
        result = _with_others(path, result)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    partial.replace(path)
    print(f"wrote {path}", flush=True)
    return path


def _with_others(path: Path, result: dict) -> dict:
    """Return the old rows, with those of the same measurements replaced by the new ones."""
    if not path.exists():
        return result
    old = json.loads(path.read_text())
    here, there = ({**r["environment"], "date": None} for r in (result, old))
    if here != there:
        print(f"{path} was measured on another machine or with other versions or code; dropping its other rows")
        return result
    rows: dict[str, list] = {}
    for row in old["rows"]:
        rows.setdefault(row["measurement"], []).append(row)
    for name in {row["measurement"]: None for row in result["rows"]}:
        rows[name] = [row for row in result["rows"] if row["measurement"] == name]
    commands = dict.fromkeys([*old["command"].split(" && "), result["command"]])
    return result | {"command": " && ".join(commands), "rows": [row for own in rows.values() for row in own]}


def _synchronize(device: str) -> Callable[[], None]:
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.synchronize
    return lambda: None


def _child(script: str, function: str, settings: str, out: str) -> None:
    specification = importlib.util.spec_from_file_location(Path(script).stem, script)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    result = getattr(module, function)(**json.loads(settings))
    Path(out).write_text(json.dumps({"peak_memory_gib": peak_memory_gib()} | result))


if __name__ == "__main__":
    _child(*sys.argv[1:])
