"""A model that knows nothing of the library: trained, resumed, sampled, opened; and what is refused."""

from functools import partial

import pytest
import torch
from torch import nn

import redi
from redi.models.autoencoders import Pixels
from redi.models.codec import JointCodec
from redi.runs.forecast import training_forecast
from redi.runtime.checkpoint import list_checkpoints, load_checkpoint


class ConvNet(nn.Module):
    def __init__(self, channels, num_classes, width=16):
        super().__init__()
        self.channels, self.grid = width, "the author's own"
        total = sum(channels.values())
        self.inputs = nn.Conv2d(total, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.label = nn.Embedding(num_classes + 1, width)
        self.time = nn.Linear(1, width)
        self.outputs = nn.Conv2d(width, total, 3, padding=1)

    def forward(self, x, t, y):
        shift = self.label(y) + self.time(t[:, None].float())
        return self.outputs(torch.relu(self.norm(self.inputs(x)) + shift[:, :, None, None]))


@pytest.fixture(scope="module")
def images():
    return redi.datasets.Digits().without(range(50, 1438))


def train(folder, images, model=ConvNet, num_steps=4, **settings):
    options = {"batch_size": 8, "device": "cpu", "precision": "float32", "log_every": 1, "preview_every": 4}
    preview = partial(redi.generate, sampler=redi.samplers.Euler(2))
    return redi.train_model(
        folder, codec=JointCodec(Pixels(1)), dataset=images, model=model, num_steps=num_steps, preview=preview,
        preview_images=4, **options | settings,
    )  # fmt: skip


def test_a_plain_module_trains_resumes_bit_equal_samples_and_opens(tmp_path, images):
    whole = train(tmp_path / "whole", images)
    train(tmp_path / "resumed", images, num_steps=2)
    (expected, _), (tensors, _) = load_checkpoint(whole), load_checkpoint(train(tmp_path / "resumed", images))
    assert "norm.running_mean" in tensors["model"]
    assert all(torch.equal(expected["model"][name], tensor) for name, tensor in tensors["model"].items())
    run = redi.load(tmp_path / "whole", codec=JointCodec(Pixels(1)), model=ConvNet, device="cpu")
    assert run.model.channels == 16 and (tmp_path / "whole/previews/step_00000004.png").exists()
    how = {"sampler": redi.samplers.Heun(4), "guidance": [redi.guidance.ClassifierFree(2.0)]}
    drawn = redi.generate(run.model, run.codec, run.process, labels=[0, 9], **how)
    assert drawn.images.shape == (2, 3, 8, 8)
    forecast = training_forecast(run.model, run.codec, 50, run.codec.device)
    assert "on 8 x 8\nmodel             0.00 M parameters\ntraining" in forecast


class NoLabels(ConvNet):
    def forward(self, x, t):
        return x


class OneChannel(ConvNet):
    def forward(self, x, t, y):
        return super().forward(x, t, y).mean(dim=1, keepdim=True)[..., :4]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NoLabels, r"train.model = NoLabels: its forward must accept \(x, t, y\): too many positional"),
        (OneChannel, r"the model returns \(8, 1, 8, 4\) for x of shape \(8, 1, 8, 8\): the prediction must have "),
        (lambda channels: "a network", "returns 'a network': must return an nn.Module"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, images, model, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, images, model)
    assert not list_checkpoints(tmp_path)


def test_a_model_that_cannot_learn_variances_is_refused_where_they_are_asked_for(tmp_path, images):
    objective = partial(redi.JointObjective, process=redi.processes.DDPM(10))
    with pytest.raises(ValueError, match="train.model = ConvNet does not accept variance_groups, which"):
        train(tmp_path, images, objective=objective)


def test_only_the_transformer_begins_with_other_weights(tmp_path, images):
    with pytest.raises(ValueError, match="initial_weights.*initial weights need a DiffusionTransformer, but the model"):
        train(tmp_path, images, initial_weights="x.pt")


def test_a_module_that_was_built_elsewhere_says_what_is_missing():
    with pytest.raises(ValueError, match="no attribute 'channels': use a model from redi.load, or .*redi.build_model"):
        redi.generate(nn.Linear(1, 1), JointCodec(Pixels(1)), redi.processes.FlowMatching(), labels=[0])
