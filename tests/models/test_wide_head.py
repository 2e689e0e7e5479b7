"""The wide head of DDT and DiT-DH."""

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention, silu

from redi.core.channels import Channels, Vector
from redi.fusion import Merged, Separate
from redi.models.blocks import Modern
from redi.models.transformer import DiffusionTransformer

CHANNELS = Channels(image=3, a=2, a_class=Vector(20, channels=2))
GRID = (4, 4)


def tiny(*, std: float = 0.2, **settings) -> DiffusionTransformer:
    torch.manual_seed(0)
    shape = {"channels": CHANNELS, "grid": GRID, "num_classes": 3, "width": 16, "depth": 2, "num_heads": 2}
    net = DiffusionTransformer(**shape | {"head_width": 24, "head_num_heads": 3} | settings)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return net


def inputs():
    generator = torch.Generator().manual_seed(1)
    x = CHANNELS.trim(torch.randn(2, CHANNELS.total, *GRID, generator=generator))
    return x, torch.tensor([0.2, 0.7]), torch.tensor([1, 3])


def block(weights, name, tokens, condition, heads):
    """A block of DiT, whose condition is (N, T, D)."""

    def linear(part, value):
        return value @ weights[f"{name}.{part}.weight"].T + weights[f"{name}.{part}.bias"]

    shift1, scale1, gate1, shift2, scale2, gate2 = linear("modulation.1", silu(condition)).chunk(6, dim=-1)
    normed = layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in linear("qkv", normed).chunk(3, dim=-1))
    tokens = tokens + gate1 * linear("projection", scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    normed = layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
    return tokens + gate2 * linear("mlp.2", gelu(linear("mlp.0", normed), approximate="tanh"))


@pytest.mark.parametrize("fusion", [Merged, Separate])
def test_forward_agrees_with_an_independent_float64_version(fusion):
    net, (x, t, y) = tiny(fusion=fusion).double(), inputs()
    x, weights = x.double(), net.state_dict()
    times = net.timestep_embedding(t)
    condition = silu(times + net.label_embedding(y))[:, None]
    tokens = net.fusion.embed(x)
    for number in range(2):
        tokens = block(weights, f"blocks.{number}", tokens, condition, heads=2)
    encoded = silu(times[:, None] + tokens)
    condition = encoded @ weights["wide_head.to_condition.weight"].T + weights["wide_head.to_condition.bias"]
    embedded = fusion(channels=CHANNELS, grid=GRID, patch_size=2, width=24).double()
    embedded.load_state_dict({n: net.wide_head.fusion.state_dict()[n] for n in embedded.state_dict()})
    embedded.positions.zero_()
    tokens = embedded.embed(x)
    for number in (2, 3):
        tokens = block(weights, f"blocks.{number}", tokens, condition, heads=3)
    final = silu(condition) @ weights["final_modulation.1.weight"].T + weights["final_modulation.1.bias"]
    shift, scale = final.chunk(2, dim=-1)
    expected = embedded.unembed(layer_norm(tokens, (24,), eps=1e-6) * (1 + scale) + shift)
    torch.testing.assert_close(net(x, t, y), expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.1


def test_the_label_reaches_the_head_through_the_tokens_alone():
    net, (x, t, y) = tiny(), inputs()
    conditions = []
    net.blocks[-1].register_forward_pre_hook(lambda module, arguments: conditions.append(arguments[1]))
    tokens = torch.randn(2, net.fusion.num_tokens, 16)
    net.blocks[1].register_forward_hook(lambda module, arguments, output: tokens)
    assert torch.equal(net(x, t, y), net(x, t, 3 - y))
    assert conditions[0].shape == (2, net.fusion.num_tokens, 24)


def test_an_untrained_model_predicts_zero():
    torch.manual_seed(0)
    net = DiffusionTransformer(
        channels=CHANNELS, grid=GRID, num_classes=3, width=16, depth=2, num_heads=2, head_width=24, inner_layer=1
    )
    assert not any(prediction.any() for prediction in net(*inputs(), inner=True))


def test_every_parameter_gets_a_gradient():
    net, (x, t, y) = tiny(alignment_dim=6, alignment_layer=2, inner_layer=1), inputs()
    sum(output.square().sum() for output in net(x, t, y, inner=True, align=True)).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"head_width": None, "head_num_heads": None, "head_depth": 3},
            "head_depth = 3: there is no wide head; set head_width",
        ),
        ({"head_width": None}, "head_num_heads = 3: there is no wide head; set head_width"),
        ({"head_width": 32}, "num_heads = 3: must divide the width 32 .of a wide head: head_num_heads, head_width"),
        ({"head_width": 30}, "head_width = 30: must be a multiple of 4"),
        (
            {"block": Modern, "head_width": 28, "head_num_heads": 2},
            r"a head has 14: .*\(of a wide head: head_num_heads",
        ),
        ({"block": Modern, "num_heads": 8}, "a head has 2: set DiffusionTransformer.num_heads"),
        ({"head_depth": 0}, "head_depth = 0: must be at least 1"),
        ({"head_width": -8}, "head_width = -8: must be at least 1"),
        ({"alignment_dim": 6, "alignment_layer": 3}, "alignment_layer = 3: must be in 1 ... 2, the depth"),
        ({"inner_layer": 3}, "inner_layer = 3: must be in 1 ... 2, the depth"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)
