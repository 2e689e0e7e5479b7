"""Time what a user waits for: `import redi`, --help, the list of components, and training until its first step.

python benchmarks/startup.py [--device auto|cpu|cuda] [--quick] [--out FILE]

Every measurement runs in a new process in an empty folder. The first is not counted, so files are in the page cache.
Each row also lists the heavy packages that the process had imported at its end. Training uses gin/digits.gin with a
prepared cache, from process start to the first line of its log; on a GPU this includes compilation.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ledger import arguments, device_of, report, side_by_side

HEAVY = (
    "torch", "torchvision", "diffusers", "timm", "xformers", "sklearn", "scipy", "matplotlib", "transformers",
    "cleanfid", "tensorboard", "numpy", "PIL", "gin",
)  # fmt: skip
PROGRAMS = (
    "run", "prepare", "train", "sample", "evaluate", "query", "report", "sweep", "convert", "convergence"
)  # fmt: skip
# Runs a program as `python -m` does, and prints the imported packages at the end.
TELLING = """
import atexit, json, runpy, sys
atexit.register(lambda: print(json.dumps([name for name in {heavy!r} if name in sys.modules]), file=sys.stderr))
sys.argv = {argv!r}
{code}
"""


def main() -> None:
    given = arguments(__doc__).parse_args()
    device = device_of(given)
    rounds, warmup = (1, 0) if given.quick else (7, 1)
    helps = PROGRAMS[:2] if given.quick else PROGRAMS
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[], object]] = {"python -c pass": lambda: run("-c", "pass", folder=folder)}
        imported = {"python -c pass": ""}
        calls["python -c 'import redi'"] = lambda: run("-c", "import redi", folder=folder)
        imported["python -c 'import redi'"] = heavy("redi", "import redi", [], folder)
        commands = {f"python -m redi.{name} --help": (f"redi.{name}", ["--help"]) for name in helps}
        commands["python -m redi.components"] = ("redi.components", [])
        for command, (module, flags) in commands.items():
            calls[command] = lambda module=module, flags=flags: run("-m", module, *flags, folder=folder)
            code = f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
            imported[command] = heavy(module, code, flags, folder)
        timings = side_by_side(calls, rounds=rounds, warmup=warmup)
        rows = [
            {"command": name, **timing.columns("wall"), "imports": imported[name]} for name, timing in timings.items()
        ]
        rows += training(folder, device, rounds=min(rounds, 3), warmup=warmup)
    report(
        "startup",
        device=device,
        settings={"rounds": rounds, "rounds_of_training": min(rounds, 3)},
        rows=rows,
        notes=["imports: the packages among " + ", ".join(HEAVY) + " that the process had imported at its end."],
        arguments=given,
    )


def run(*command: str, folder: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    return done


def heavy(module: str, code: str, flags: list[str], folder: str) -> str:
    """Return the packages in HEAVY that a command imports, in a process that is not timed."""
    told = run("-c", TELLING.format(heavy=HEAVY, argv=[module, *flags], code=code), folder=folder)
    return ", ".join(json.loads(told.stderr.splitlines()[-1]))


def training(folder: str, device: str, *, rounds: int, warmup: int) -> list[dict]:
    """Return the row of the time from the start of `redi.train` to the first line of its log."""
    settings = [
        "--gin_file=digits.gin", f"--gin_bindings=train.device = '{device}'", "--gin_bindings=train.log_every = 1",
        "--gin_bindings=train.num_steps = 2",
        f"--gin_bindings=prepare.cache_dir = '{folder}/cache'", "--gin_bindings=DomainEncoder.num_steps = 5",
    ]  # fmt: skip
    run("-m", "redi.prepare", *settings, f"--run_dir={folder}/prepared", folder=folder)
    number = 0

    def first_step() -> None:
        nonlocal number
        number += 1
        until_first_step(settings, Path(folder) / f"run{number}", folder)

    (timing,) = side_by_side({"training": first_step}, rounds=rounds, warmup=warmup).values()
    command = "python -m redi.train --gin_file=digits.gin, until the first step"
    return [{"command": command, **timing.columns("wall"), "imports": None}]


def until_first_step(settings: list[str], run_dir: Path, folder: str) -> None:
    log, errors = run_dir / "log.jsonl", run_dir.with_suffix(".txt")
    command = [sys.executable, "-m", "redi.train", *settings, f"--run_dir={run_dir}"]
    with errors.open("w") as sink, subprocess.Popen(command, cwd=folder, stdout=sink, stderr=sink) as process:
        while not (log.exists() and '"loss"' in log.read_text()):
            if process.poll() is not None:
                raise RuntimeError(f"redi.train ended without a step: {errors.read_text()[-500:]}")
            time.sleep(0.01)
        process.kill()  # the rest of the run is not needed


if __name__ == "__main__":
    main()
