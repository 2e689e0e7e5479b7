"""A training step and a step of sampling on a GPU never wait for it, shown without one.

The tensors here pretend to lie on a GPU. Reading the value of one (`.item()`, `float()`, `if`, a boolean index) needs
what they do not have; a copy to the host or from it is refused by `NoCopies`.
"""

import contextlib
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redi.core.channels import Channels
from redi.core.clocks import Independent, Lead, Learned
from redi.core.ema import EMA
from redi.core.losses import min_snr
from redi.core.objective import JointObjective
from redi.core.processes.ddpm import DDPM
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.shifted import Shifted
from redi.core.processes.vp import VP
from redi.core.samplers import ImageNoise
from redi.core.samplers.ancestral import Ancestral
from redi.core.samplers.ddim import DDIM
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.core.samplers.heun import Heun
from redi.core.time_distributions import LogitNormal, Uniform
from redi.fusion.separate import Separate
from redi.guidance import guided
from redi.guidance.classifier_free import ClassifierFree
from redi.guidance.representation import RepresentationGuidance
from redi.models.blocks import Modern
from redi.models.cost import without_memory
from redi.models.transformer import DiffusionTransformer
from redi.runtime.device import Precision
from redi.training.optimizers import Muon, make_optimizer
from redi.training.schedules import Cosine
from redi.training.step import TrainingStep

CHANNELS = Channels(image=4, dinov2=8)
# In place of a codec: already one state.
JOINED = SimpleNamespace(join=lambda stored, randn: stored["image"], alignments=())
READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")


class NoCopies(TorchDispatchMode):
    """Rejects operations that wait for the device: values read by the host, and copies between devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).split(".")[1]
        assert name not in READS, f"{function} waits for the device"
        result = function(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_", "to", "_pin_memory"):
            places = {leaf.device.type for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)}
            assert len(places) == 1, f"{function} copies between {' and '.join(sorted(places))}"
        return result


@contextlib.contextmanager
def pretended_gpu():
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def built(process=None, device="cuda", *, clock=None, time_distribution=None, terms=None, **model):
    objective = JointObjective(
        channels=CHANNELS, num_classes=10, process=process, representation_dropout=0.2, clock=clock,
        time_distribution=time_distribution, **(terms or {}),
    )  # fmt: skip
    settings = {"width": 32, "depth": 1, "num_heads": 4, "patch_size": 2, "group_timesteps": clock is not None} | model
    variances = objective.process.variance_groups
    with torch.device("meta"):
        net = DiffusionTransformer(
            channels=CHANNELS, grid=(8, 8), num_classes=10, variance_groups=variances, **settings
        )
    net = without_memory(objective.attach(net), device).train()
    objective.parts = getattr(net, "objective_parts", objective.parts)
    return net, objective


def leave_gradients(model, loss):
    """Replaces the backward pass, whose engine needs a real GPU."""
    assert loss.requires_grad
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)


MODERN = "a lead, modern blocks and a wide head"
PROCESSES = {
    "flow matching": {"process": FlowMatching()},
    "DDPM, learned variance": {"process": DDPM(learned_variance=("image",))},
    "shifted": {"process": Shifted(process=FlowMatching(), shift={"dinov2": 3.0})},
    "independent times": {"clock": Independent()},
    MODERN: {
        "clock": Lead(),
        "time_distribution": LogitNormal(shift="dimension"),
        "block": Modern,
        "head_width": 64,
        "timestep_features": "gaussian",
        "group_times_by": "concatenation",
    },
    "a lead on a path with poles": {"clock": Lead(), "process": VP(), "time_distribution": Uniform(shift=2.0)},
    "curves that are learned": {"clock": Learned(), "terms": {"kinetic_weight": 0.1}},
    "found curves": {
        "clock": Learned(path={"format": "redi clock 1", "groups": {"image": [1, 2, 3], "dinov2": [1, 1]}}),
        "time_distribution": LogitNormal(),
        "terms": {"own_times": "kept"},
    },
    "separate tokens, an inner prediction": {"fusion": Separate, "terms": {"inner_layer": 1}, "inner_layer": 1},
    "velocity loss, cosine and time weight": {
        "process": FlowMatching(prediction="data", loss_on="velocity"),
        "clock": Lead(offset=0.3),
        "terms": {"cosine_weight": 1.0, "time_weight": min_snr, "joint_dropout": 0.2},
    },
}


# In two parts: a step of one part runs the same operations; that of Muon is one.
@pytest.mark.parametrize("settings", PROCESSES.values(), ids=PROCESSES)
def test_a_training_step_waits_for_nothing(settings, monkeypatch):
    assert_waits_for_nothing(settings, 2, monkeypatch, partial(torch.optim.AdamW, fused=True))


def test_a_step_of_muon_with_a_schedule_waits_for_nothing(monkeypatch):
    assert_waits_for_nothing({}, 1, monkeypatch, Muon, schedule=Cosine(10))


def assert_waits_for_nothing(settings, accumulate, monkeypatch, optimizer, **further):
    with pretended_gpu():
        model, objective = built(**settings)
        monkeypatch.setattr(torch.Tensor, "backward", lambda loss: leave_gradients(model, loss))
        step = TrainingStep(
            codec=JOINED, model=model, objective=objective, optimizer=make_optimizer(optimizer, model),
            ema=EMA(model=model), accumulate=accumulate, warmup_steps=3, precision=Precision("tf32", torch.float32),
            **further,
        )  # fmt: skip
        x = torch.empty(8, CHANNELS.total, 8, 8, device="cuda")
        batch = {"image": x, "labels": torch.empty(8, dtype=torch.int64, device="cuda")}
        step(batch, 0)  # makes the optimizer's state
        with NoCopies():
            means = step(batch, 1)
    assert all(value.device.type == "cuda" for value in means.values())


# Checkpointing runs each block once more, and reaches nothing outside of them: one set-up for each kind of block.
@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [*((name, False) for name in PROCESSES), *((name, True) for name in ("flow matching", MODERN))],
)
def test_the_backward_pass_reads_no_values(name, checkpointing):
    with pretended_gpu():  # on the CPU: reading still fails, copies are not seen
        model, objective = built(**PROCESSES[name], device="cpu", checkpointing=checkpointing)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        step = TrainingStep(
            codec=JOINED, model=model, objective=objective, optimizer=optimizer, ema=EMA(model=model),
            precision=Precision("bfloat16", torch.bfloat16),
        )  # fmt: skip
        batch = {"image": torch.empty(8, CHANNELS.total, 8, 8), "labels": torch.zeros(8, dtype=torch.int64)}
        for number in range(2):
            with NoCopies():
                step(batch, number)


RULES = {
    "none": [],
    "image": [ClassifierFree(scale=1.5, groups=("image",))],
    "both rules": [ClassifierFree(scale=1.5), RepresentationGuidance(scale=1.2)],
}
FLOW = EulerMaruyama(num_evaluations=6), FlowMatching()


# A sampler sees of the rules only what they make of the predictions: every sampler with both, every rule with one, and
# with the learned variance that a rule must leave alone.
@pytest.mark.parametrize(
    ("sampler", "process", "rules"),
    [
        pytest.param(*FLOW, "none", id="EulerMaruyama, none"),
        pytest.param(*FLOW, "both rules", id="EulerMaruyama, both rules"),
        pytest.param(Heun(num_evaluations=6), FlowMatching(), "both rules", id="Heun"),
        pytest.param(Ancestral(num_evaluations=5), DDPM(learned_variance=("image",)), "image", id="Ancestral, image"),
        pytest.param(Ancestral(num_evaluations=5), DDPM(learned_variance=("image",)), "both rules", id="Ancestral"),
        pytest.param(DDIM(num_evaluations=5), DDPM(), "both rules", id="DDIM"),
    ],
)
def test_guided_sampling_waits_for_nothing_between_its_first_and_its_last_step(sampler, process, rules):
    with pretended_gpu(), torch.no_grad():
        model, _ = built(process)
        model.eval()
        process = process.for_channels(CHANNELS, "cuda")
        draw = ImageNoise(0, range(4), (CHANNELS.total, 8, 8), "cuda")
        y = torch.empty(4, dtype=torch.int64, device="cuda")
        denoise = guided(model, RULES[rules], CHANNELS, y, model.null_label, process.model_time)
        with NoCopies():
            x = sampler(denoise, process, draw)
    assert x.device.type == "cuda" and x.shape == (4, CHANNELS.total, 8, 8)


def test_what_waits_is_found():
    with pretended_gpu():
        x = torch.empty(4, device="cuda")
        with pytest.raises(AssertionError, match="waits for the device"), NoCopies():
            x.sum().item()
        with pytest.raises(AssertionError, match="copies between cpu and cuda"), NoCopies():
            x.cpu()
        with pytest.raises(AssertionError, match="copies between cpu and cuda"), NoCopies():
            torch.zeros(4).to(x.device)
