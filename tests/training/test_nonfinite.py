"""The first module with non-finite values, and the count of skipped steps."""

import logging

import pytest
import torch
from torch import nn

from redi.training.nonfinite import Finding, SkipGuard, explain

ROWS, WIDTH = 6, 8


class Fault(nn.Module):
    """The identity, except for one row."""

    def __init__(self, forward: float = 1.0, backward: float = 1.0, row: int = 3):
        super().__init__()
        self.forward_factor, self.backward_factor, self.row = forward, backward, row

    def forward(self, x):
        factors = [torch.ones(len(x), *[1] * (x.ndim - 1)) for _ in range(2)]
        for factor, value in zip(factors, (self.forward_factor, self.backward_factor), strict=True):
            factor[self.row] = value
        return Factors.apply(x, *factors)


class Factors(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, there, back):
        ctx.save_for_backward(back)
        return x * there

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None


class Passing(nn.Module):
    """Returns infinity once, like a flipped bit."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x / (self.calls - 1)


class Root(nn.Module):
    """sqrt has an infinite slope at 0."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        return x + self.shift.sqrt()


def model(fault: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), fault or nn.Identity(), nn.Identity())
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), block, nn.Linear(WIDTH, WIDTH))


def found(net: nn.Module, x: torch.Tensor | None = None) -> Finding:
    x = torch.linspace(-1, 1, ROWS * WIDTH).reshape(ROWS, WIDTH) if x is None else x
    return explain(net, lambda: {"loss": net(x).square().mean()}, x)


def test_rows_of_the_input_are_named():
    x = torch.ones(ROWS, WIDTH)
    x[2, 5], x[4, 0] = float("nan"), float("inf")
    finding = found(model(), x)
    assert (finding.phase, finding.rows) == ("input", [2, 4])
    assert finding.text == "the model's input is not finite"


def test_the_first_module_whose_output_is_not_finite_is_named():
    finding = found(model(Fault(forward=float("inf"))))
    assert (finding.phase, finding.module, finding.rows) == ("forward", "1.2", [3])
    assert finding.text == "the output of 1.2 (Fault) is not finite"


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_the_first_module_that_gets_a_gradient_that_is_not_finite_is_named(factor):
    finding = found(model(Fault(backward=factor)))  # which is 1.2, and 1.1 comes before it
    assert (finding.phase, finding.module, finding.rows) == ("backward", "1.1", [3])
    assert finding.text == "the gradient of the output of 1.1 (ReLU) is not finite"


def test_a_gradient_that_comes_from_the_loss_is_said_to():
    net = model()
    x = torch.ones(ROWS, WIDTH)
    finding = explain(net, lambda: {"loss": Factors.apply(net(x), torch.ones(()), torch.tensor(float("nan"))).sum()}, x)
    assert (finding.phase, finding.module) == ("backward", "2")  # the last


def test_a_gradient_of_parameters_alone_is_named():
    finding = found(model(Root()))
    assert (finding.phase, finding.module, finding.rows) == ("gradient", "1.2", [])
    assert finding.text == "the gradient of 1.2.shift is not finite"


def test_weights_that_are_not_finite_are_named():
    net = model()
    net[1][0].bias.data[0] = float("nan")
    assert (found(net).phase, found(net).module) == ("weights", "1.0")


def test_an_error_that_overflows_is_told_from_an_output_that_does():
    finding = found(model(Fault(forward=1e30)))
    assert finding.phase == "loss" and "the model's output is finite, but its loss 'loss' is not finite" in finding.text


def test_a_norm_that_overflows_is_told_from_a_gradient_that_does():
    net = model()
    x = torch.ones(ROWS, WIDTH)
    finding = explain(net, lambda: {"loss": 1e25 * net(x).sum()}, x)
    assert finding.phase == "norm"


def test_what_does_not_come_back_is_said_to_have_passed():
    net = model(Passing())
    assert not net(torch.ones(ROWS, WIDTH)).isfinite().all()
    net[1][2].calls = 1  # the second call and all after it are finite
    assert found(net).phase == "none"


def test_nothing_of_the_look_stays():
    net = model(Fault(forward=float("inf")))
    x = torch.ones(ROWS, WIDTH)
    found(net)
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(net(x)[0], model()(x)[0])  # a row without fault


def test_the_gradient_is_the_same_under_observation():
    net = model(Fault())
    x = torch.linspace(-1, 1, ROWS * WIDTH).reshape(ROWS, WIDTH)
    kept = {}

    def losses():
        for name, parameter in net.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: kept.__setitem__(name, p.grad.clone()))
        return {"loss": net(x).square().mean()}

    explain(net, losses, x)
    net(x).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter.grad, kept[name])


def test_a_compiled_module_is_looked_into():
    net = model(Fault(backward=float("nan")))
    net[1].compile(backend="eager", fullgraph=True)
    net(torch.ones(ROWS, WIDTH)).sum().backward()  # the graph is there
    finding = found(net)
    assert (finding.phase, finding.module, finding.rows) == ("backward", "1.1", [3])


@pytest.fixture
def process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("fault", "place"),
    [(Fault(forward=float("inf")), ("forward", "1.2")), (Fault(backward=float("nan")), ("backward", "1.1"))],
)
def test_a_sharded_model_is_looked_into(process_group, fault, place):
    from torch.distributed.fsdp import fully_shard

    net = model(fault)
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    fully_shard(net[1], mesh=mesh)
    fully_shard(net, mesh=mesh)
    finding = found(net)
    assert (finding.phase, finding.module, finding.rows) == (*place, [3])
    assert all(p.grad is None for p in net.parameters())


def counted(guard: SkipGuard, *skipped: float, first: int = 0) -> SkipGuard:
    for step, value in enumerate(skipped, start=first):
        guard.add(step, torch.tensor(value))
    guard.exceeded()
    return guard


def test_skipped_steps_are_counted_until_there_are_too_many():
    guard = counted(SkipGuard(2), 0.0, 1.0, 0.0, 1.0)
    assert (guard.count, guard.last, guard.exceeded()) == (2, 3, False)
    counted(guard, 1.0, first=4)
    assert (guard.count, guard.last, guard.exceeded()) == (3, 4, True)


def test_a_checkpoint_forgives_what_was_single_but_not_what_goes_on():
    guard = counted(SkipGuard(3), 1.0, 1.0, 0.0, 1.0, 1.0)
    guard.reset()
    assert guard.count == 2
    assert counted(guard, 1.0, 1.0, first=5).exceeded()


def test_no_skipped_step_is_tolerated_where_none_is_allowed():
    assert counted(SkipGuard(0), 1.0).exceeded()


@pytest.mark.parametrize("bad", [-1, 1.5, None])
def test_a_bound_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="train.max_skipped_steps = .* must be an integer of at least 0"):
        SkipGuard(bad)


def test_many_skipped_steps_make_few_lines(caplog):
    with caplog.at_level(logging.WARNING, logger="redi"):
        for warns in (True, False):
            counted(SkipGuard(1000, warns=warns), *[1.0] * 300)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 10 and "step 256 is skipped" in said[-1] and "256 of at most 1000" in said[-1]
