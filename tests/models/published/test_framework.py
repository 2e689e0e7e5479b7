"""SiT, DiT or REPA, told from settings, names and answers; the answers of models trained here for a moment."""

from functools import cache

import pytest
import torch
from torch.nn import functional

from redi.core.channels import Channels
from redi.core.objective import JointObjective
from redi.core.processes import DDPM, FlowMatching
from redi.models.published.framework import decide_framework, probe
from redi.models.published.weights import from_published, to_published
from redi.models.transformer import DiffusionTransformer

PROCESSES = {"sit": FlowMatching(), "repa": FlowMatching(reversed=True), "dit": DDPM()}


@cache
def trained(framework: str, num_steps: int = 100) -> dict:
    """The published state of a model that was trained on smooth random images with the framework's process."""
    torch.manual_seed(0)
    channels = Channels(image=4)
    objective = JointObjective(channels=channels, num_classes=1, process=PROCESSES[framework])
    groups = {"variance_groups": objective.process.variance_groups} if framework == "dit" else {}
    model = DiffusionTransformer(
        channels=channels, grid=(8, 8), num_classes=1, width=32, depth=1, num_heads=2, size="S/2", **groups
    )
    parameters = list(model.parameters())
    for step in range(num_steps):
        x = functional.interpolate(torch.randn(16, 4, 3, 3), (8, 8), mode="bicubic")
        loss = objective(model, x, torch.zeros(16, dtype=torch.long))["loss"]
        with torch.no_grad():  # by the gradients' signs: like Adam, without its import of the compiler
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter -= 5e-3 * (1 - step / num_steps) * gradient.sign()
    state = {name: tensor.detach().clone() for name, tensor in to_published(model).items()}
    if framework != "dit":  # the sigma of the published SiT and REPA: rows that begin as zero and stay so
        for part in ("weight", "bias"):
            rows = state[f"final_layer.linear.{part}"].unflatten(0, (4, 4))
            state[f"final_layer.linear.{part}"] = torch.cat([rows, torch.zeros_like(rows)], dim=1).flatten(0, 1)
    return state


def decide(state, args=None, asked=None):
    return decide_framework(from_published(state, num_heads=2), args or {}, asked)[0]


@pytest.mark.parametrize("framework", PROCESSES)
def test_trained_weights_tell_their_framework_by_their_answers(framework):
    assert decide(trained(framework)) == framework


@pytest.mark.parametrize(("framework", "time", "sign"), [("sit", 0.0, -1), ("repa", 1.0, 1), ("dit", 999.0, 1)])
def test_where_noise_is_expected_the_answer_is_its_multiple(framework, time, sign):
    imported = from_published(trained(framework), num_heads=2)
    model = DiffusionTransformer(**imported.runtime, **imported.settings)
    model.load_state_dict(imported.state)
    assert sign * probe(model.eval(), [time])[0] > 0.5


@pytest.mark.parametrize(("framework", "asked"), [("sit", "dit"), ("sit", "repa"), ("repa", "sit"), ("dit", "sit")])
def test_a_framework_that_the_answers_speak_against_is_refused(framework, asked):
    with pytest.raises(
        ValueError, match=rf"--framework={asked} contradicts the checkpoint, which is .*{framework}.*0\.5"
    ):
        decide(trained(framework), asked=asked)


def untrained(**extra):
    state = trained("dit", 0)
    return state | extra


def test_untrained_weights_need_to_be_told():
    with pytest.raises(ValueError, match=r"cannot be told .*untrained.*--framework=sit\|dit\|repa"):
        decide(untrained())
    assert [decide(untrained(), asked=asked) for asked in PROCESSES] == list(PROCESSES)


PROJECTOR = {
    f"projectors.0.{i}.{part}": torch.zeros(shape)
    for i, rows, columns in ((0, 6, 32), (2, 6, 6), (4, 5, 6))
    for part, shape in (("weight", (rows, columns)), ("bias", (rows,)))
}


@pytest.mark.parametrize(
    ("args", "extra", "expected"),
    [
        ({"model": "SiT-XL/2", "path_type": "Linear"}, {}, "sit"),
        ({"model": "DiT-B/4"}, {}, "dit"),
        ({"model": "SiT-XL/2", "path_type": "linear", "enc_type": "dinov2-vit-b"}, PROJECTOR, "repa"),
        ({}, PROJECTOR, "repa"),
    ],
)
def test_settings_and_names_tell_it_of_weights_that_answer_nothing(args, extra, expected):
    assert decide(untrained(**extra), args) == expected


def test_settings_of_repas_program_without_its_projectors_leave_the_direction_open():
    with pytest.raises(ValueError, match=r"settings name SiT-XL/2.*--framework=sit\|repa"):
        decide(untrained(), {"model": "SiT-XL/2", "enc_type": "dinov2-vit-b"})


def test_sit_is_refused_for_a_file_with_repas_projectors():
    with pytest.raises(
        ValueError, match=r"--framework=sit contradicts the checkpoint, which is repa: it holds projectors"
    ):
        decide(untrained(**PROJECTOR), asked="sit")


def test_settings_that_the_answers_speak_against_are_refused():
    with pytest.raises(
        ValueError, match=r"contradicts itself: its settings name DiT-XL/2; .*second outputs are exactly 0"
    ):
        decide(trained("sit"), {"model": "DiT-XL/2"})


def test_an_unknown_framework_is_refused():
    with pytest.raises(ValueError, match="--framework=edm: it is one of sit, dit, repa"):
        decide(untrained(), asked="edm")
