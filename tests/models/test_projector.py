import pytest
import torch
from torch import nn

from redi.core.channels import Channels
from redi.models.projector import build_projector
from redi.models.transformer import DiffusionTransformer


def test_the_mlp_has_the_names_and_the_three_layers_of_repa():
    projector = build_projector("mlp", 8, 20, 6, (4, 4))
    assert list(projector.state_dict()) == [f"{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")]
    w, tokens = projector.state_dict(), torch.randn(2, 16, 8)
    x = nn.functional.silu(tokens @ w["0.weight"].T + w["0.bias"])
    x = nn.functional.silu(x @ w["2.weight"].T + w["2.bias"])
    torch.testing.assert_close(projector(tokens), x @ w["4.weight"].T + w["4.bias"])


def test_the_convolution_sums_the_neighbours_of_every_token_on_the_grid():
    projector = build_projector("conv", 3, 20, 5, (2, 4)).double()
    tokens = torch.randn(2, 8, 3, dtype=torch.float64)
    weight, bias = projector.convolution.weight, projector.convolution.bias  # (E, D, 3, 3)
    assert weight.shape == (5, 3, 3, 3)
    expected = bias.expand(2, 8, 5).clone()
    for row in range(2):
        for column in range(4):
            for i in range(max(row - 1, 0), min(row + 2, 2)):
                for j in range(max(column - 1, 0), min(column + 2, 4)):
                    kernel = weight[:, :, i - row + 1, j - column + 1]
                    expected[:, 4 * row + column] += tokens[:, 4 * i + j] @ kernel.T
    torch.testing.assert_close(projector(tokens), expected)


def test_each_of_several_encoders_has_a_projector_of_its_width():
    torch.manual_seed(0)
    net = DiffusionTransformer(
        channels=Channels(image=2), grid=(8, 8), num_classes=3, width=16, depth=2, num_heads=2, patch_size=2,
        alignment_dim={"alignment_a": 6, "alignment_b": 9}, alignment_layer=1, alignment_projector="conv",
    )  # fmt: skip
    x, t, y = torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1])
    prediction, tokens = net(x, t, y, align=True)
    assert {name: tuple(t.shape) for name, t in tokens.items()} == {
        "alignment_a": (2, 16, 6),
        "alignment_b": (2, 16, 9),
    }
    assert torch.equal(prediction, net(x, t, y))
    assert "projector.alignment_a.convolution.weight" in net.state_dict()


def test_an_unknown_projector_is_refused():
    with pytest.raises(
        ValueError, match=r"DiffusionTransformer\.alignment_projector = 'linear': must be 'mlp' or 'conv'"
    ):
        build_projector("linear", 8, 20, 6, (4, 4))
