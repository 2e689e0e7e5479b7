"""What the transformer needs of every registered block, with all its options at once."""

import pytest
import torch

from redi.core.channels import Channels, Vector
from redi.core.ema.exponential import EMA
from redi.fusion import fusions
from redi.models.blocks import blocks
from redi.models.transformer import DiffusionTransformer
from redi.training.optimizers import Muon

CHANNELS = Channels(image=3, a=2, a_class=Vector(20, channels=2))
GRID = (4, 6)
HEADS = {"no wide head": {}, "wide head": {"head_width": 36, "head_num_heads": 3}}


@pytest.fixture(params=HEADS.values(), ids=HEADS)
def head(request):
    return request.param


@pytest.fixture(params=blocks.values(), ids=blocks)
def block(request):
    return request.param


@pytest.fixture(params=fusions.values(), ids=fusions)
def build(request, block, head):
    """Build an untrained model with a time per group, REPA, an inner head and Gaussian features."""

    def build(**settings):
        torch.manual_seed(0)
        shape = {"channels": CHANNELS, "grid": GRID, "num_classes": 4, "width": 24, "depth": 2, "num_heads": 3}
        settings = {"fusion": request.param, "block": block, **head, **settings}
        return DiffusionTransformer(
            **shape, group_timesteps=True, group_times_by="concatenation", timestep_features="gaussian",
            alignment_dim=5, alignment_layer=1, alignment_width=8, inner_layer=2, **settings,
        )  # fmt: skip

    return build


@pytest.fixture
def randomised(build):
    def randomised(**settings):
        model = build(**settings)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        return model

    return randomised


def batch(n=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = CHANNELS.trim(torch.randn(n, CHANNELS.total, *GRID, generator=generator, dtype=dtype))
    return x, torch.rand(n, len(CHANNELS), generator=generator, dtype=dtype), torch.arange(n)


def outputs(model, *inputs):
    return model(*inputs, align=True, inner=True)


def test_an_untrained_model_predicts_zero_and_its_blocks_are_the_identity(build):
    model, inputs = build(), batch()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, arguments, output: seen.append(torch.equal(arguments[0], output)))
    prediction, inner, features = outputs(model, *inputs)
    assert prediction.shape == inner.shape == inputs[0].shape and features.shape == (3, 6, 5)
    assert not prediction.any() and not inner.any() and seen == [True] * len(model.blocks)


def test_all_predictions_leave_the_padding_of_vectors_at_zero(randomised):
    for prediction in outputs(randomised(), *batch())[:2]:
        assert prediction.any() and torch.equal(CHANNELS.trim(prediction), prediction)


def test_samples_of_a_batch_do_not_see_each_other(randomised):
    model, inputs = randomised().double(), batch(dtype=torch.float64)
    alone = [outputs(model, *(part[i : i + 1] for part in inputs)) for i in range(3)]
    for whole, parts in zip(outputs(model, *inputs), zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-10, atol=1e-10)


def test_checkpointing_changes_neither_values_nor_gradients_which_reach_every_weight(randomised):
    results = []
    for checkpointing in (False, True):
        model = randomised(checkpointing=checkpointing).train()
        values = outputs(model, *batch())
        sum(value.square().sum() for value in values).backward()
        results.append([*values, *(p.grad for p in model.parameters() if p.requires_grad)])
        assert [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.any()] == []
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_optimizer_and_average_move_every_weight_but_the_fixed_frequencies(randomised):
    model = randomised()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    average, optimizer = EMA(model, decay=0.5), Muon(model, lr=0.1)
    in_blocks = {id(p) for block in model.blocks for p in block.parameters() if p.ndim == 2}
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == in_blocks
    sum(value.square().sum() for value in outputs(model, *batch())).backward()
    optimizer.step()
    average.update(model, step=0)
    for tensors in (dict(model.named_parameters()), average.parameters):
        fixed = [name for name, tensor in tensors.items() if torch.equal(tensor, before[name])]
        assert fixed and all(name.endswith(".frequencies") for name in fixed)


def test_a_state_dict_round_trip_gives_the_same_outputs(build, randomised):
    model, other, inputs = randomised(), build(), batch()
    other.load_state_dict(model.state_dict(), strict=True)
    assert all(torch.equal(*pair) for pair in zip(outputs(other, *inputs), outputs(model, *inputs), strict=True))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_the_chosen_attention_is_that_of_every_block(randomised):
    model, inputs = randomised(attention="math"), batch()
    expected = outputs(model, *inputs)  # by sdpa
    line = model.choose_attention("cpu", torch.float32)
    dims = {block.width // block.num_heads for block in model.blocks}
    assert all(f"head dimension {dim}, " in line for dim in dims) and line.count("math (as bound") == len(dims)
    assert {block.attend.__name__ for block in model.blocks} == {"attend_math"}
    for got, value in zip(outputs(model, *inputs), expected, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-4)
