import math

import pytest
import torch
from torch.nn.functional import silu

from redi.core.channels import Channels
from redi.models.timesteps import TimestepEmbedding
from redi.models.transformer import DiffusionTransformer

CHANNELS = Channels(image=3, a=5, b=2)


def model(**settings) -> DiffusionTransformer:
    torch.manual_seed(0)
    shape = {"channels": CHANNELS, "grid": (4, 4), "num_classes": 3, "width": 24, "depth": 1, "num_heads": 2}
    net = DiffusionTransformer(**shape | settings)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def test_gaussian_features_are_sines_then_cosines_of_fixed_random_frequencies():
    embedding = TimestepEmbedding(8, features="gaussian", scale=0.5)
    t = torch.tensor([0.0, 0.3, 1.0])
    weights = {name: tensor.double() for name, tensor in embedding.state_dict().items()}
    angles = 2 * math.pi * 0.5 * t.double()[:, None] * weights["frequencies"]
    hidden = torch.cat([angles.sin(), angles.cos()], dim=1) @ weights["mlp.0.weight"].T + weights["mlp.0.bias"]
    expected = silu(hidden) @ weights["mlp.2.weight"].T + weights["mlp.2.bias"]
    torch.testing.assert_close(embedding(t).double(), expected, rtol=0, atol=1e-5)
    assert weights["frequencies"].shape == (256,) and 0.8 < weights["frequencies"].std() < 1.2


def test_training_leaves_the_frequencies_and_a_state_dict_holds_them():
    net, other = model(timestep_features="gaussian"), model(timestep_features="gaussian", depth=1)
    before = net.timestep_embedding.frequencies.clone()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    x, t, y = torch.randn(2, 10, 4, 4), torch.rand(2), torch.tensor([0, 3])
    net(x, t, y).square().sum().backward()
    optimizer.step()
    assert torch.equal(net.timestep_embedding.frequencies, before)
    torch.nn.init.zeros_(other.timestep_embedding.frequencies)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x, t, y), net(x, t, y))


def test_concatenated_times_are_those_of_the_representations_then_that_of_the_image():
    net = model(group_timesteps=True, group_times_by="concatenation")
    conditions = []
    net.blocks[0].register_forward_pre_hook(lambda module, inputs: conditions.append(inputs[1]))
    times, y = torch.tensor([[0.1, 0.4, 0.9]]), torch.tensor([1])
    net(torch.randn(1, 10, 4, 4), times, y)
    parts = [net.group_embeddings["a"](times[:, 1]), net.group_embeddings["b"](times[:, 2])]
    parts.append(net.timestep_embedding(times[:, 0]))
    assert [part.shape for part in parts] == [(1, 8)] * 3
    torch.testing.assert_close(conditions[0], torch.cat(parts, dim=1) + net.label_embedding(y))


def test_without_group_times_concatenation_changes_nothing():
    inputs = torch.randn(2, 10, 4, 4), torch.rand(2), torch.tensor([0, 3])
    assert torch.equal(model(group_times_by="concatenation")(*inputs), model()(*inputs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timestep_features": "fourier"}, "timestep_features = 'fourier': must be 'sinusoidal' or 'gaussian'"),
        ({"group_times_by": "mean"}, "group_times_by = 'mean': must be 'sum' or 'concatenation'"),
        (
            {"group_times_by": "concatenation", "group_timesteps": True, "width": 16},
            "group_times_by = 'concatenation': the width 16 must be a multiple of the number of groups, 3",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        model(**settings)
