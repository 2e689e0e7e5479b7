"""Parts of an objective: modules that train with the network."""

from functools import partial

import pytest
import torch
from torch import nn

import redi
from redi.core.channels import Channels
from redi.core.ema import EMA
from redi.core.objective import JointObjective
from redi.data.datasets.digits import Digits
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec
from redi.models.transformer import DiffusionTransformer
from redi.runtime.checkpoint import list_checkpoints, load_checkpoint
from redi.training.memory import predicted_memory
from redi.training.parallel import parallels
from redi.training.trainer import train

NAME = "objective_parts.factor.weight"
MODEL = partial(DiffusionTransformer, width=16, depth=1, num_heads=2, patch_size=4)


class Weighed(JointObjective):
    """Trains the factor of a further term, which rests in odd steps."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.parts["factor"] = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.parts["factor"].weight)

    def losses(self, model, x, *args, **settings):
        losses = super().losses(model, x, *args, **settings)
        return losses | {"loss": losses["loss"] + self.parts["factor"](x.new_ones(1)).square().sum()}

    def resting(self, step):
        return self.parts.parameters() if step % 2 else ()


@pytest.fixture(scope="module")
def run():
    """Trains in a folder, with a checkpoint after every step; returns the folder."""
    images, codec = Digits().without(range(30, 1438)), JointCodec(Pixels(1))

    def run(folder, num_steps=4, **settings):
        settings = {"objective": Weighed, "ema": partial(EMA, decay=0.5)} | settings
        return train(
            folder, codec=codec, dataset=images, model=MODEL, num_steps=num_steps, batch_size=4, checkpoint_every=1,
            keep_checkpoints=10, preview_every=100, check_memory=False, device="cpu", **settings,
        ).parents[1]  # fmt: skip

    return run


def weights(folder, group="model"):
    """The factor after each step."""
    return [load_checkpoint(checkpoint)[0][group][NAME].item() for checkpoint in list_checkpoints(folder)]


def test_parts_train_are_averaged_and_rest(run, tmp_path):
    raw, average = weights(run(tmp_path)), weights(tmp_path, "ema")
    assert 1 > raw[0] == raw[1] > raw[2] == raw[3]
    assert average[:2] == pytest.approx([(1 + raw[0]) / 2, (1 + raw[0]) / 4 + raw[1] / 2])


def test_a_resumed_run_with_parts_is_bit_equal_to_an_unbroken_one(run, tmp_path):
    run(tmp_path / "stopped", num_steps=3)
    folders = [run(tmp_path / name) for name in ("stopped", "unbroken")]
    (found, record), (expected, other) = (load_checkpoint(list_checkpoints(folder)[-1]) for folder in folders)
    assert record == other  # the SHA-256 of every file among them
    assert NAME in found["model"].keys() & found["ema"].keys() & expected["ema"].keys()


def test_a_run_with_parts_opens_with_its_objective_and_without(run, tmp_path):
    from redi.runs.load import open_run

    folder = list_checkpoints(run(tmp_path))[-1]
    tensors, record = load_checkpoint(folder)
    settings = {"codec": JointCodec(Pixels(1)), "model": MODEL, "device": torch.device("cpu")}
    opened = open_run(tmp_path, folder, tensors, record, objective=Weighed, **settings)
    assert opened.objective.parts["factor"].weight.item() == weights(tmp_path, "ema")[-1]
    plain = redi.load(tmp_path, codec=JointCodec(Pixels(1)), model=MODEL, device="cpu")
    arguments = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 1])
    assert torch.equal(plain.model(*arguments), opened.model(*arguments))


def test_a_network_starts_from_one_with_parts_and_the_other_way_round(run, tmp_path):
    run(tmp_path / "parts", num_steps=1)
    run(tmp_path / "plain", num_steps=1, objective=JointObjective, initial_weights=tmp_path / "parts")
    run(tmp_path / "again", num_steps=1, initial_weights=tmp_path / "plain")
    assert weights(tmp_path / "again") == weights(tmp_path / "parts")  # keeps its initial value


def test_fsdp_refuses_parts():
    objective = Weighed(channels=Channels(image=1), num_classes=2)
    with pytest.raises(ValueError, match=r"train.parallel = FSDP with factor.*: bind @parallel.DDP\(\)"):
        parallels["FSDP"]().check(objective)
    parallels["DDP"]().check(objective)
    parallels["FSDP"]().check(JointObjective(channels=Channels(image=1), num_classes=2))


def test_without_parts_a_network_stays_as_it_is():
    net = JointObjective(channels=Channels(image=1), num_classes=2).attach(nn.Linear(1, 1))
    assert list(net.state_dict()) == ["weight", "bias"]


def test_memory_is_predicted_with_the_parts():
    objective = Weighed(channels=Channels(image=1), num_classes=2)
    with torch.device("meta"):
        net = objective.attach(MODEL(channels=objective.channels, grid=(8, 8), num_classes=2))
    assert predicted_memory(net, objective, grid=(8, 8), batch_size=4) > 0
    assert objective.parts["factor"].weight.device.type == "cpu"
