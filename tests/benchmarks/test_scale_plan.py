"""The scale plan's arithmetic against what it is about: a ring played through, real bytes, limits; and its page."""

from dataclasses import replace

import numpy as np
import pytest
import torch


def all_reduced(parts: np.ndarray) -> tuple[np.ndarray, int]:
    """parts (n, n): what n processes hold, in n pieces -> what they hold in the end, and pieces that each has sent."""
    n, held, sent = len(parts), parts.copy(), 0
    for turn in range(2 * (n - 1)):  # sums travel once around, then what has been summed does
        moved = [((rank - turn) % n, held[rank, (rank - turn) % n]) for rank in range(n)]
        for rank, (piece, value) in enumerate(moved):
            neighbour = (rank + 1) % n
            held[neighbour, piece] = value + (held[neighbour, piece] if turn < n - 1 else 0)
        sent += 1
    return held, sent


@pytest.mark.parametrize("n", [2, 5, 8])
def test_an_all_reduce_takes_what_a_ring_of_processes_sends(n):
    from scale_plan import Assumed, ring

    parts = np.random.default_rng(0).normal(size=(n, n))
    held, sent = all_reduced(parts)
    np.testing.assert_allclose(held, np.broadcast_to(parts.sum(0), (n, n)))
    assert 2 * ring(1.0, n, Assumed(nvlink=1.0)) == pytest.approx(sent / n)


def test_a_row_has_the_bytes_that_a_cache_stores():
    from scale_plan import Assumed
    from setups import SETUPS, make_batch, make_codec

    batch = make_batch(SETUPS["XL/2"], make_codec(SETUPS["XL/2"]), 3)
    assert sum(tensor.numel() * tensor.element_size() for tensor in batch.values()) == 3 * Assumed().row


def test_a_checkpoint_has_four_numbers_a_parameter(monkeypatch):
    import scale_plan

    from redi.core.ema import EMA
    from redi.runtime.artefact import optimizer_tensors

    model = torch.nn.Linear(30, 50)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    names = [name for name, _ in model.named_parameters()]
    state, _ = optimizer_tensors(optimizer, names)
    groups = [dict(model.named_parameters()), EMA(model=model).parameters, state]
    stored = sum(t.numel() * t.element_size() for group in groups for t in group.values() if t.ndim)
    monkeypatch.setattr(scale_plan, "model", lambda: (sum(p.numel() for p in model.parameters()), 1.0))
    assert scale_plan.checkpoint_bytes() == stored


def test_a_network_that_is_fast_costs_nothing_and_one_that_is_slow_costs_its_own_time(monkeypatch):
    import scale_plan

    monkeypatch.setattr(scale_plan, "model", lambda: (675_000_000, 7e11))
    assumed = replace(scale_plan.Assumed(), jitter=0.0, checkpoint_every=10**12, hop=0.0)
    fast = scale_plan.step(64, 2048, replace(assumed, network=1e15, nvlink=1e15))
    assert fast["efficiency"] == pytest.approx(1, abs=1e-4)
    slow = scale_plan.step(64, 2048, replace(assumed, network=1e8))
    assert slow["seconds"] == pytest.approx(2 * 63 / 64 * 2.7e9 / 1e8, rel=0.02)
    # Of the gathered weights and summed gradients, FSDP sends half as much again as DDP.
    sharded = scale_plan.step(64, 2048, replace(assumed, network=1e8), "FSDP")
    assert sharded["network"] == pytest.approx(1.5 * slow["network"])


def test_the_page_is_what_the_script_makes():
    from scale_plan import PAGE, Assumed, generated

    text = PAGE.read_text()
    assert text.count("<!-- end of") == 3
    assert generated(text, Assumed()) == text
