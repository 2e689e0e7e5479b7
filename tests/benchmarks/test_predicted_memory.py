"""Predicted memory: of tensors whose number is known, of real steps, and how it grows."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from predicted_memory import ADAMW, MemoryCount, training_memory

from redi.core.channels import Channels
from redi.core.objective import JointObjective
from redi.models.transformer import Block, DiffusionTransformer
from redi.runtime.device import Precision

ROOT = Path(__file__).resolve().parents[2]
CHANNELS = Channels(image=4, dinov2=8)
FLOAT32, BFLOAT16 = Precision("float32", torch.float32), Precision("bfloat16", torch.bfloat16)


def predicted(batch_size=16, *, precision=FLOAT32, compiled=False, optimizer=ADAMW, **model) -> int:
    settings = {"width": 64, "depth": 3, "num_heads": 4, "patch_size": 2} | model
    with torch.device("meta"):
        net = DiffusionTransformer(channels=CHANNELS, grid=(16, 16), num_classes=10, **settings)
    objective = JointObjective(channels=CHANNELS, num_classes=10)
    return training_memory(
        net, objective, batch_size=batch_size, precision=precision, compiled=compiled, optimizer=optimizer
    )


def test_the_count_is_of_storages_that_are_alive():
    with MemoryCount() as memory:
        a = torch.zeros(1000)
        view, b = a[10:], a + 1
        assert memory.now == memory.peak == 8000
        del a, b
        assert memory.now == 4000 and memory.peak == 8000  # the view holds its storage
        del view
    assert memory.now == 0


def test_memory_grows_linearly_with_the_batch():
    at = {n: predicted(n) for n in (16, 32, 64)}
    assert at[64] - at[32] == pytest.approx(2 * (at[32] - at[16]), rel=1e-3)


def test_adam_s_two_moments_are_counted():
    with torch.device("meta"):
        net = DiffusionTransformer(
            channels=CHANNELS, grid=(16, 16), num_classes=10, width=64, depth=3, num_heads=4, patch_size=2
        )
    parameters = sum(p.nbytes for p in net.parameters())
    plain = partial(torch.optim.SGD, lr=0.1, fused=True)
    assert predicted() - predicted(optimizer=plain) == pytest.approx(2 * parameters, rel=1e-3)


def test_a_checkpointed_block_keeps_its_input_and_no_more():
    deeper = predicted(64, depth=3, checkpointing=True) - predicted(64, depth=2, checkpointing=True)
    weights = sum(
        p.nbytes for p in Block(64, 4, 4.0).parameters()
    )  # and as many for the EMA and each of Adam's moments
    state = 64 * 64 * 64 * 4  # (N, T, D) in float32
    assert deeper - 4 * weights == pytest.approx(state, rel=0.01)


def test_bfloat16_keeps_less_than_float32_and_a_compiled_block_less_than_an_eager_one():
    def per_block(**settings) -> int:
        return predicted(64, depth=2, **settings) - predicted(64, depth=1, **settings)

    eager = per_block(precision=BFLOAT16)
    assert 0.5 * per_block() < eager < 0.8 * per_block()
    assert 0.5 * eager < per_block(precision=BFLOAT16, compiled=True) < 0.95 * eager


def test_the_caller_s_objective_and_model_are_left_alone():
    objective = JointObjective(channels=CHANNELS, num_classes=10)
    net = DiffusionTransformer(
        channels=CHANNELS, grid=(8, 8), num_classes=10, width=16, depth=1, num_heads=2, patch_size=2
    )
    before, losses = {k: v.clone() for k, v in net.state_dict().items()}, objective.losses
    training_memory(net, objective, batch_size=4, precision=FLOAT32, compiled=True)
    assert objective.losses == losses and all(torch.equal(before[k], v) for k, v in net.state_dict().items())


MEASURE = """
import sys; sys.path.insert(0, "benchmarks")
from machine import peak_memory_gib
from memory import measure
for batch_size in (2, 8):
    measure(size="B/2", tokens="merged", way="eager", depth=1, batch_size=batch_size)
    print(peak_memory_gib())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and sets glibc's malloc")
def test_real_steps_take_what_was_predicted_for_each_further_image():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    at2, at8 = (float(line) * 2**30 for line in done.stdout.split())

    with torch.device("meta"):
        model = DiffusionTransformer(channels=CHANNELS, grid=(32, 32), num_classes=1000, size="B/2", depth=1)
    objective = JointObjective(channels=CHANNELS, num_classes=1000)
    small, large = (training_memory(model, objective, batch_size=n, precision=FLOAT32) for n in (2, 8))
    assert at8 - at2 == pytest.approx(large - small, rel=0.05)
