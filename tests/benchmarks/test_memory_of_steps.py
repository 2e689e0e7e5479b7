"""Predicted memory against real steps, and that of compiled ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from memory import predict

ROOT = Path(__file__).resolve().parents[2]


def test_a_compiled_block_keeps_less_than_an_eager_one():
    def per_block(way: str) -> float:
        one, two = (predict(size="S/2", tokens="merged", way=way, batch_size=8, depth=depth) for depth in (1, 2))
        return two - one

    assert 0.5 * per_block("eager") < per_block("compiled") < 0.95 * per_block("eager")


MEASURE = """
import sys; sys.path.insert(0, "benchmarks")
from memory import measure
for batch_size in (2, 8):
    measure(size="S/2", tokens="merged", way="eager", depth=1, batch_size=batch_size)
    status = open("/proc/self/status").read()
    print(*(status.split(f"{name}:")[1].split()[0] for name in ("VmPeak", "VmSize")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and sets glibc's malloc")
def test_real_steps_take_what_was_predicted_for_each_further_image():
    # Every tensor is a mapping of its own, which glibc returns. The address space is counted and not what of it is in
    # memory at a time: on a loaded machine the kernel takes idle pages away.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (peak2, left2), (peak8, left8) = ((float(kib) * 2**10 for kib in line.split()) for line in done.stdout.splitlines())
    settings = {"size": "S/2", "tokens": "merged", "way": "eager", "depth": 1, "precision": "float32"}
    small, large = (predict(batch_size=n, **settings) * 2**30 for n in (2, 8))
    # Besides tensors, the matrix products keep scratch space: 4 MB more, which stays when the step is over.
    assert peak8 - peak2 == pytest.approx(large - small, rel=0.1)
    assert (peak8 - left8) - (peak2 - left2) == pytest.approx(large - small, rel=0.02)
