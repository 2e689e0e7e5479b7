"""Two processes under torchrun of which one is killed, again and again: all start over from the last checkpoint."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from chaos_driver import Training, compared

TORCHRUN = (
    "-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=100",
    "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
)  # fmt: skip
FORKED = (str(Path(__file__).parents[1] / "distributed" / "launch.py"), "2")  # the same in less time


def ranks(process: subprocess.Popen) -> dict[int, int]:
    """Rank -> process id of the workers that torchrun started."""
    found = {}
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((v.removeprefix(b"RANK=") for v in variables if v.startswith(b"RANK=")), None)
        if rank is not None:
            found[int(rank)] = int(pid)
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("num_kills", "num_steps"), [(1, 60), pytest.param(10, 1000, marks=pytest.mark.chaos)])
def test_two_processes_survive_the_death_of_either(num_kills, num_steps, make_training, report):
    lines = f"train.num_steps = {num_steps}", "train.checkpoint_every = 25"
    unbroken = make_training(*lines, launcher=FORKED)
    assert unbroken.finish() == 0, unbroken.said()[-3000:]

    broken = make_training(*lines, launcher=TORCHRUN)
    generator = random.Random(2)
    steps = sorted(generator.sample(range(1, num_steps * 9 // 10), num_kills))
    lost = []

    def kill_ranks(run: Training, process: subprocess.Popen) -> str:
        workers: dict[int, int] = {}
        for step in steps:
            run.wait(
                process, lambda old=workers: len(now := ranks(process)) == 2 and not {*old.values()} & {*now.values()}
            )
            workers = ranks(process)
            run.wait(process, run.reaches(step))
            time.sleep(generator.uniform(0.0, 0.01))
            os.kill(workers[generator.randrange(2)], signal.SIGKILL)
            lost.append(max(0, run.logged_step() - run.saved_step()))
        return "SIGKILL of one process of two"

    outcome = broken.suffer(kill_ranks)
    assert outcome.status == 0, broken.said()[-3000:]
    assert outcome.damage == []
    differences = compared(broken, unbroken)
    for steps_lost in lost:
        report.add("two processes, torchrun", outcome.fault, survived=not differences, steps_lost=steps_lost)
    assert differences == []
    assert max(lost) <= 25
