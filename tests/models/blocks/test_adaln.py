import torch
from torch import nn

from redi.models.blocks import AdaLN


class Plain(nn.Module):
    """The block as it was before blocks became components."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens, condition):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        q, k, v = self.qkv(self.norm1(tokens) * (1 + scale1) + shift1).chunk(3, dim=-1)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + gate1 * self.projection(attended)
        return tokens + gate2 * self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)


def test_values_and_gradients_are_the_earlier_ones_to_the_bit():
    torch.manual_seed(0)
    block, plain = AdaLN(width=24, num_heads=3), Plain(24, 3)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert list(block.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(block.state_dict())
    tokens, condition = torch.randn(2, 7, 24), torch.randn(2, 24)
    one, other = block(tokens, condition), plain(tokens, condition)
    assert torch.equal(one, other)
    for result in (one, other):
        result.square().sum().backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(block.get_parameter(name).grad, parameter.grad), name
