"""Wall and CPU seconds of training steps, alone and beside a busy process, by how long waiting threads spin.

python benchmarks/threads.py [--device cpu] [--quick] [--out FILE] [--steps N]

torch's threads wait for one another with GNU OpenMP (`GOMP_SPINCOUNT`). Every row is a separate process that trains the
quickstart's model with one thread per core. The busy process is a loop that never waits. Run it on a free machine.
"""

import contextlib
import os
import resource
import subprocess
import sys
import time

from ledger import arguments, in_process, report

POLICIES = {"default": None, "10,000": "10000", "1,000, set by the programs": "1000", "0": "0"}
BUSY = "while True: pass"


def steps(*, num_steps: int) -> dict:
    """Return {"wall": ..., "cpu": ...}: seconds per training step."""
    from training import make_step

    step, _ = make_step("quickstart", batch_size=128, device="cpu")
    for _ in range(2):
        step()
    start = time.perf_counter(), _cpu_seconds()
    for _ in range(num_steps):
        step()
    end = time.perf_counter(), _cpu_seconds()
    return {"wall": (end[0] - start[0]) / num_steps, "cpu": (end[1] - start[1]) / num_steps}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def beside(busy: bool):
    """Context in which another process occupies one core, if `busy`."""
    if not busy:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        try:
            yield
        finally:
            process.kill()


def measured(spin_count: str | None, busy: bool, num_steps: int) -> dict:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.pop(name, None)
    if spin_count is not None:
        os.environ["GOMP_SPINCOUNT"] = spin_count
    with beside(busy):
        return in_process(steps, num_steps=num_steps)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=20, help="training steps of a row")
    given = parser.parse_args()
    num_steps, rows = 2 if given.quick else given.steps, []
    for busy in (False, True):
        for name, spin_count in POLICIES.items():
            seconds = measured(spin_count, busy, num_steps)
            rows.append({
                "measurement": "beside a busy process" if busy else "alone", "spin_count": name,
                "wall_seconds_per_step": seconds["wall"], "cpu_seconds_per_step": seconds["cpu"],
            })  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    report(
        "threads", device="cpu", rows=rows, arguments=given, settings={"batch_size": 128, "steps": num_steps},
        notes=["Spin count: turns of a waiting thread before it sleeps. The default of GNU OpenMP is 300,000."],
    )  # fmt: skip


if __name__ == "__main__":
    main()
