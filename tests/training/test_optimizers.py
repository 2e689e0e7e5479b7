"""Muon for the blocks and AdamW for the rest, compared with torch's two optimizers called by hand."""

import copy
import math
import re
from functools import partial

import pytest
import torch

from redi.core.channels import Channels
from redi.models.transformer import DiffusionTransformer
from redi.training.optimizers import ADAMW, Muon, make_optimizer


def model_of(seed=0):
    torch.manual_seed(seed)
    return DiffusionTransformer(
        channels=Channels(image=2, z=3), grid=(4, 4), num_classes=4, width=16, depth=2, num_heads=2, patch_size=2
    )


def matrices_of(model):
    names = ("qkv", "projection", "mlp", "modulation")
    return [
        p for name, p in model.named_parameters()
        if name.startswith("blocks.") and name.endswith(".weight") and any(part in name for part in names)
    ]  # fmt: skip


def leave_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_three_steps_are_those_of_torch_s_muon_and_adamw():
    ours, theirs = model_of(), model_of()
    settings = {"momentum": 0.9, "ns_steps": 4, "adjust_lr_fn": "original", "weight_decay": 0.05}
    both = make_optimizer(partial(Muon, lr=0.02, **settings, others=partial(ADAMW, lr=0.01)), ours)
    matrices = matrices_of(theirs)
    assert len(matrices) == 2 * 5
    rest = [p for p in theirs.parameters() if all(p is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.02, nesterov=True, **settings)
    adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.0, fused=True)
    for step in range(3):
        for model in (ours, theirs):
            leave_gradients(model, step)
        for optimizer in (both, muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] *= 0.5  # a schedule reaches both
            optimizer.step()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, dict(theirs.named_parameters())[name]), name


def test_the_defaults_are_nesterov_s_momentum_the_size_of_adamw_s_steps_and_no_weight_decay():
    model = model_of()
    optimizer = Muon(model, others=partial(ADAMW, lr=3e-3))
    expected = {"lr": 3e-3, "momentum": 0.95, "nesterov": True, "ns_steps": 5, "weight_decay": 0.0}
    assert expected.items() <= optimizer.param_groups[0].items()
    before = [matrix.detach().clone() for matrix in matrices_of(model)]
    leave_gradients(model, 0)
    optimizer.step()
    for matrix, old in zip(matrices_of(model), before, strict=True):
        # Singular values near 1: an entry's root mean square is (columns or rows, the smaller, / all entries)^1/2.
        size = (matrix - old).square().mean().sqrt().item()
        assert size == pytest.approx(0.2 * 3e-3, rel=0.35)


@pytest.mark.parametrize("num_before", [0, 2])
def test_a_step_whose_gradient_is_not_finite_changes_nothing(num_before):
    model = model_of()
    optimizer = make_optimizer(Muon, model)
    for step in range(num_before):
        leave_gradients(model, step)
        optimizer.step()
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    leave_gradients(model, 9)
    for parameter in model.parameters():
        parameter.grad.view(-1)[0] = math.nan
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    for index, entries in state.items():
        assert all(torch.equal(entries[key], optimizer.state_dict()["state"][index][key]) for key in entries)
    optimizer.found_inf = torch.zeros(())
    leave_gradients(model, 10)
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert not torch.equal(weights["blocks.0.qkv.weight"], model.state_dict()["blocks.0.qkv.weight"])


def test_a_loaded_state_continues_in_the_same_way():
    one, other = model_of(), model_of()
    first, second = make_optimizer(Muon, one), make_optimizer(Muon, other)
    for step in range(2):
        leave_gradients(one, step)
        first.step()
    other.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for model, optimizer in ((one, first), (other, second)):
        leave_gradients(model, 2)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


class Convolution(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Conv2d(2, 2, 3)])
        self.head = torch.nn.Linear(2, 2)  # a matrix, but not of a block


BAD = {
    "no matrices": ({}, Convolution, "Convolution.blocks has no matrices"),
    "no blocks": ({}, partial(torch.nn.Linear, 2, 2), "Linear.blocks has no matrices"),
    "momentum": ({"momentum": 1.0}, model_of, "Muon.momentum = 1.0 must be a finite number of at least 0 and"),
    "iterations": ({"ns_steps": 100}, model_of, "Muon.ns_steps = 100 must be an integer of at least 1 and less than"),
    "adjustment": ({"adjust_lr_fn": "none"}, model_of, "Muon.adjust_lr_fn = 'none': must be 'match_rms_adamw' or"),
    "negative rate": ({"lr": -1.0}, model_of, "Muon refuses its settings: Learning rate should be >= 0"),
    "infinite rate": ({"lr": math.inf}, model_of, "Muon.lr = inf must be a finite number"),
    "rate of the others": ({"others": partial(ADAMW, lr=math.inf)}, model_of, "Muon.lr = inf must be a finite number"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "model", "message"), BAD.values(), ids=BAD)
def test_what_cannot_work_is_refused_with_the_binding(settings, model, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_optimizer(partial(Muon, **settings), model())
