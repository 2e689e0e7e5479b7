"""A probe finds a clock, and a run trains under it."""

import json
from functools import partial

import pytest
import torch

from redi.core.clocks import Learned
from redi.core.objective import JointObjective
from redi.runtime.checkpoint import list_checkpoints, load_checkpoint
from redi.training.parallel import parallels
from tests.distributed.trainings import trained

PROBE = partial(JointObjective, clock=Learned(every=3, speed=100.0))
RAW = "objective_parts.clock.image.raw"


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """The folder of a probe of 4 steps; the curves move in the third."""
    folder = tmp_path_factory.mktemp("runs") / "probe"
    trained(folder, objective=PROBE, checkpoint_every=1, keep_checkpoints=9)
    return folder


def test_curves_and_network_take_turns(probe):
    models = [load_checkpoint(checkpoint)[0]["model"] for checkpoint in list_checkpoints(probe)]
    moved = [not torch.equal(one[RAW], ahead[RAW]) for one, ahead in zip(models, models[1:], strict=False)]
    assert moved == [False, True, False]  # steps 2, 3 and 4
    for before, after, moves in zip(models, models[1:], moved, strict=False):
        others = [name for name in before if name != RAW and not name.endswith("positions")]
        assert all(torch.equal(before[name], after[name]) for name in others) is moves


def test_every_checkpoint_writes_the_clock_and_a_new_run_of_the_same_objective_begins_anew(probe, tmp_path):
    content = json.loads((probe / "clock.json").read_text())
    assert content["origin"]["step"] == 4 and content["groups"].keys() == {"image", "domain", "domain_pooled"}
    assert content["groups"]["image"] != Learned().module["image"].knots(0.0)[0]
    schedule = json.loads((probe / "training.json").read_text())["noise_schedule"]
    found = Learned(path=probe)
    assert schedule["t"]["image"] == [pytest.approx(found.time("image", s), abs=1e-4) for s in schedule["s"]]
    trained(tmp_path / "second", objective=PROBE, num_steps=1)
    assert Learned(path=tmp_path / "second").time("image", 0.5) == pytest.approx(Learned().time("image", 0.5))


def test_a_run_under_the_clock_keeps_a_copy_and_refuses_another_clock_when_it_resumes(probe, tmp_path):
    path = tmp_path / "found.json"
    path.write_text((probe / "clock.json").read_text())
    objective = lambda **shapes: JointObjective(clock=Learned(path=path), own_times="kept", **shapes)  # noqa: E731
    trained(tmp_path / "run", objective=objective, num_steps=2)
    copy, content = json.loads((tmp_path / "run" / "clock.json").read_text()), json.loads(path.read_text())
    assert copy["groups"] == content["groups"]
    assert not any(
        "objective_parts" in name for name in load_checkpoint(tmp_path / "run/checkpoints/step_00000002")[0]["model"]
    )
    content["groups"]["image"][0] /= 2
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"was trained with another clock\.json: restore the file from its copy in"):
        trained(tmp_path / "run", objective=objective)
    path.write_text(json.dumps(copy))
    trained(tmp_path / "run", objective=objective)


def test_fsdp_refuses_a_probe_and_takes_a_found_clock(probe):
    settings = {"channels": load_channels(probe), "num_classes": 10}
    with pytest.raises(ValueError, match=r"train\.parallel = FSDP with clock"):
        parallels["FSDP"]().check(PROBE(**settings))
    parallels["FSDP"]().check(JointObjective(clock=Learned(path=probe), **settings))


def load_channels(run_dir):
    from redi.core.channels import Channels

    return Channels(**load_checkpoint(list_checkpoints(run_dir)[-1])[1]["model_arguments"]["channels"])
