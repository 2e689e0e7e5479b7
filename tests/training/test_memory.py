"""Predicted memory: of known tensors and of real steps, and its growth."""

import re
from functools import partial

import pytest
import torch

from redi.core.channels import Channels
from redi.core.objective import JointObjective
from redi.models.blocks import AdaLN, Modern
from redi.models.transformer import DiffusionTransformer
from redi.runtime.device import Precision
from redi.runtime.distributed import Processes
from redi.training import memory
from redi.training.memory import MemoryCount, check_memory, predicted_memory
from redi.training.optimizers import Muon
from redi.training.parallel.ddp import DDP

CHANNELS = Channels(image=4, dinov2=8)
FLOAT32, BFLOAT16 = Precision("float32", torch.float32), Precision("bfloat16", torch.bfloat16)


def predicted(batch_size=16, *, precision=FLOAT32, optimizer=torch.optim.AdamW, **model) -> int:
    settings = {"width": 64, "depth": 3, "num_heads": 4, "patch_size": 2} | model
    with torch.device("meta"):
        net = DiffusionTransformer(channels=CHANNELS, grid=(16, 16), num_classes=10, **settings)
    objective = JointObjective(channels=CHANNELS, num_classes=10)
    return predicted_memory(
        net, objective, grid=net.grid, batch_size=batch_size, precision=precision, optimizer=optimizer
    )


def test_the_count_is_of_storages_that_are_alive():
    with MemoryCount() as count:
        a = torch.zeros(1000)
        view, b = a[10:], a + 1
        assert count.now == count.peak == 8000
        del a, b
        assert count.now == 4000 and count.peak == 8000  # the view holds its storage
        del view
    assert count.now == 0


def test_memory_grows_linearly_with_the_batch():
    at = {n: predicted(n) for n in (16, 32, 64)}
    assert at[64] - at[32] == pytest.approx(2 * (at[32] - at[16]), rel=1e-3)


def test_adam_s_two_moments_are_counted():
    with torch.device("meta"):
        net = DiffusionTransformer(
            channels=CHANNELS, grid=(16, 16), num_classes=10, width=64, depth=3, num_heads=4, patch_size=2
        )
    parameters = sum(p.nbytes for p in net.parameters())
    plain = partial(torch.optim.SGD, lr=0.1)
    assert predicted() - predicted(optimizer=plain) == pytest.approx(2 * parameters, rel=1e-3)


def test_muon_s_single_momentum_of_the_matrices_is_counted():
    with torch.device("meta"):
        matrices = sum(p.nbytes for p in AdaLN(width=64, num_heads=4).parameters() if p.ndim == 2)
    assert predicted() - predicted(optimizer=Muon) == pytest.approx(3 * matrices, rel=1e-6)


def test_a_checkpointed_block_keeps_its_input_and_no_more():
    deeper = predicted(64, depth=3, checkpointing=True) - predicted(64, depth=2, checkpointing=True)
    weights = sum(
        p.nbytes for p in AdaLN(width=64, num_heads=4).parameters()
    )  # and as many for the EMA and each of Adam's moments
    state = 64 * 64 * 64 * 4  # (N, T, D) in float32
    assert deeper - 4 * weights == pytest.approx(state, rel=0.01)


def test_a_wide_head_s_weights_and_checkpointed_inputs_are_counted():
    wide, tokens = 128, 64 * 64
    settings = {"block": Modern, "head_width": wide, "checkpointing": True, "depth": 1}
    deeper = predicted(64, head_depth=2, **settings) - predicted(64, head_depth=1, **settings)
    weights = sum(p.nbytes for p in Modern(width=wide, num_heads=4).parameters())
    # 4: the weights, their average and Adam's moments. The condition of every token is kept once for all blocks.
    assert deeper - 4 * weights == pytest.approx(tokens * wide * 4, rel=0.05)


def test_bfloat16_keeps_less_than_float32():
    def per_block(**settings) -> int:
        return predicted(64, depth=2, **settings) - predicted(64, depth=1, **settings)

    assert 0.5 * per_block() < per_block(precision=BFLOAT16) < 0.8 * per_block()


def test_the_caller_s_objective_and_model_are_left_alone():
    objective = JointObjective(channels=CHANNELS, num_classes=10)
    net = DiffusionTransformer(
        channels=CHANNELS, grid=(8, 8), num_classes=10, width=16, depth=1, num_heads=2, patch_size=2
    )
    before, losses = {k: v.clone() for k, v in net.state_dict().items()}, objective.losses
    predicted_memory(net, objective, grid=(8, 8), batch_size=4)
    assert objective.losses == losses and all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def small_step(**settings) -> None:
    """Checks the memory of a step of about 3 MB on the CPU."""
    arguments = {"channels": CHANNELS, "grid": (16, 16), "num_classes": 10}
    settings = {"batch_size": 16, "accumulate": 1, "compiled": False, "processes": Processes()} | settings
    model = settings.pop("model", partial(DiffusionTransformer, width=16, depth=1, num_heads=2, patch_size=4))
    objective = JointObjective(channels=CHANNELS, num_classes=10)
    check_memory(model, arguments, objective, device=torch.device("cpu"), parallel=DDP(), **settings)


def test_a_step_is_stated_beside_the_memory_that_is_free(caplog):
    with caplog.at_level("INFO", logger="redi"):
        small_step()
    number = r"\d+\.\d"
    assert re.search(rf"a training step needs about \d+ MiB, and {number} of {number} GiB are free", caplog.text)


def test_a_step_that_cannot_fit_is_refused_with_what_to_bind(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: (10**6, 2 * 10**6))
    with pytest.raises(ValueError) as error:
        small_step(batch_size=6)
    for name in ("accumulate (", "batch_size", "check_memory = False"):
        assert f"train.{name}" in str(error.value)
    assert "DiffusionTransformer.checkpointing = True" in str(error.value)
    enough = int(re.search(r"accumulate \((\d+): ", str(error.value))[1])
    small_step(batch_size=6, accumulate=enough)


def test_a_compiled_step_which_may_need_less_is_not_refused_for_what_an_eager_one_needs(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: (10**6, 2 * 10**6))
    with pytest.raises(ValueError):
        small_step(batch_size=8)
    small_step(batch_size=8, compiled=True)


def test_a_model_that_reads_values_is_trained_without_a_prediction(caplog):
    class Reads(DiffusionTransformer):
        def forward(self, x, t, y):
            return super().forward(x, t, y) * float(x.mean())

    with caplog.at_level("INFO", logger="redi"):
        small_step(model=partial(Reads, width=16, depth=1, num_heads=2, patch_size=4))
    assert "memory: no prediction, because the dry run failed" in caplog.text


def test_predicting_draws_no_random_number():
    before = torch.get_rng_state()
    predicted()
    assert torch.equal(torch.get_rng_state(), before)
