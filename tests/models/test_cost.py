"""FLOPs against the published numbers and a closed formula; rates of devices."""

import pytest
import torch
from torch import nn

from redi.core.channels import Channels
from redi.fusion.separate import Separate
from redi.models.attention import attend_sdpa
from redi.models.blocks import Modern
from redi.models.cost import forward_flops, matmul_rate, nominal_rate
from redi.models.sizes import SIZES
from redi.models.transformer import DiffusionTransformer

PLAIN, JOINT = Channels(image=4), Channels(image=4, dinov2=8)


def model_of(channels, size="B/2", *, grid=32, device="meta", **settings):
    with torch.device(device):
        return DiffusionTransformer(channels=channels, grid=(grid, grid), num_classes=1000, size=size, **settings)


@pytest.mark.parametrize(("size", "grid", "gmac"), [("B/2", 32, 23.0), ("L/2", 32, 80.7), ("XL/2", 32, 118.6)])
def test_the_plain_model_costs_what_was_published(size, grid, gmac):
    # Peebles & Xie, arXiv 2212.09748, table 4: "Gflops", which are multiply-adds.
    assert round(forward_flops(model_of(PLAIN, size, grid=grid)) / 2e9, 1) == gmac


@pytest.mark.parametrize(("size", "gmac"), [("B/2", 48.4), ("XL/2", 245.5)])
def test_512_tokens_cost_a_little_more_than_twice_as_much(size, gmac):
    assert round(forward_flops(model_of(JOINT, size, fusion=Separate)) / 2e9, 1) == gmac


@pytest.mark.parametrize("fusion", [{}, {"fusion": Separate}])
@pytest.mark.parametrize("size", ["S/4", "B/2", "XL/2"])
def test_the_count_is_that_of_the_formula(size, fusion):
    model = model_of(JOINT, size, **fusion)
    (d, depth, _), p = SIZES[size.split("/")[0]], int(size[-1])
    patches = (32 // p) ** 2
    tokens = patches * (2 if fusion else 1)
    block = 12 * d * d * tokens + 2 * tokens * tokens * d + 6 * d * d  # layers, attention, modulation
    embedding_and_heads = 2 * patches * d * 12 * p * p
    conditioning = 256 * d + d * d + 2 * d * d
    assert forward_flops(model) / 2 == depth * block + embedding_and_heads + conditioning


def test_modern_blocks_and_a_wide_head_are_counted():
    model = model_of(PLAIN, "S/2", block=Modern, head_width=576, timestep_features="gaussian")
    tokens, d, wide = 256, 384, 576

    def block(d, hidden, conditions):  # layers, attention, modulation: one per image, or per token in the head
        return (4 * d * d + 3 * d * hidden) * tokens + 2 * tokens * tokens * d + 6 * d * d * conditions

    head = 2 * block(wide, 1536, tokens) + tokens * (d * wide + 2 * wide * wide)  # with its condition and final layer
    embeddings_and_heads = tokens * 16 * (d + 2 * wide) + 512 * d + d * d
    assert forward_flops(model) / 2 == 12 * block(d, 1024, 1) + head + embeddings_and_heads


def test_the_alignment_s_projector_counts_where_it_is_used():
    model = model_of(PLAIN, "B/2", alignment_dim=768)
    projector = 256 * (768 * 2048 + 2048 * 2048 + 2048 * 768)
    assert forward_flops(model, align=True) - forward_flops(model) == 2 * projector


def test_counting_leaves_the_model_as_it_was():
    model = model_of(PLAIN, "S/4", grid=8, device="cpu", depth=1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forward_flops(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training and model.blocks[0].attend is attend_sdpa
    assert all(p.device.type == "cpu" and p.requires_grad for p in model.parameters())


def test_the_cost_does_not_depend_on_checkpointing():
    assert forward_flops(model_of(PLAIN, checkpointing=True).train()) == forward_flops(model_of(PLAIN))


class Convolution(nn.Module):
    channels, grid, num_classes = PLAIN, (8, 8), 1

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x, t, y):
        return self.layer(x)


def test_any_module_that_tells_what_it_was_built_for_can_be_counted():
    assert forward_flops(Convolution()) == 2 * 8 * 8 * 4 * 4 * 9


def test_a_measured_rate_is_a_number_of_flops_per_second():
    assert 1e8 < matmul_rate("cpu", torch.float32, seconds=0.05) < 1e14  # whatever this runs on


def test_nominal_rates_are_known_by_name():
    assert nominal_rate("NVIDIA H200", torch.bfloat16) == 790e12
    assert nominal_rate("NVIDIA GeForce RTX 4090", torch.bfloat16) == 165e12
    assert nominal_rate("NVIDIA H200", torch.float32) is None and nominal_rate("", torch.bfloat16) is None
