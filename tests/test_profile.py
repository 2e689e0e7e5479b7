"""redi.profile on the digits: what it writes and leaves alone, and that its numbers agree with each other."""

import gzip
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from absl.testing import flagsaver

from redi import command_line, profile
from redi.core.channels import Channels
from redi.models.cost import forward_flops
from redi.models.transformer import DiffusionTransformer
from redi.runs.profile import time_by_part

SETTINGS = [
    "AdamW.lr = 1e-3",
    "DiffusionTransformer.depth = 2",
    "DiffusionTransformer.width = 64",
    "train.batch_size = 32",
]


ROOT = Path(__file__).resolve().parents[1]


def shell(*command, cwd):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Runs the program inside this process -> exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    command_line.FLAGS.mark_as_parsed()
    log = logging.getLogger("redi")
    before = log.handlers[:], log.propagate, log.level

    def call(*bindings, gin_file=(), run_dir=None, stage="training"):
        files = [gin_file] if isinstance(gin_file, str) else list(gin_file)
        with flagsaver.flagsaver(gin_file=files, gin_bindings=list(bindings), run_dir=str(run_dir), stage=stage):
            status = command_line.exit_status(profile.main, ["program"])
        return status, *capsys.readouterr()

    yield call
    log.handlers[:], log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.fixture(scope="module")
def profiled(tiny_gin, tmp_path_factory):
    """The folder of a profile of training, made by a real process."""
    folder = tmp_path_factory.mktemp("profiled")
    flags = [f"--gin_file={tiny_gin}", "--run_dir=run", *(f"--gin_bindings={binding}" for binding in SETTINGS)]
    done = shell("-m", "redi.profile", *flags, "--gin_bindings=profile.num_steps = 3", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "# Profile of training" in done.stdout and "ERROR" not in done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def result(profiled):
    return json.loads((profiled / "profile" / "report.json").read_text())


def test_the_trace_and_both_reports_are_written_and_nothing_else(profiled):
    assert {path.name for path in profiled.iterdir()} == {"profile"}
    names = {path.name for path in (profiled / "profile").iterdir() if not path.name.startswith(".")}
    assert names == {"audit.json", "trace.json.gz", "report.md", "report.json"}


def test_the_trace_opens_and_names_the_parts(profiled):
    trace = json.loads(gzip.open(profiled / "profile" / "trace.json.gz").read())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"data", "encode", "forward", "backward", "optimizer", "ema", "attention", "MLP"} <= names


def test_ten_costs_are_named_and_the_shares_are_parts_of_a_whole(result):
    assert len(result["costs"]) == 10
    assert 0 < sum(cost["share"] for cost in result["costs"]) <= result["share_device_busy"] <= 1
    assert sum(result["parts"].values()) == pytest.approx(result["share_device_busy"], rel=1e-3)
    assert {"attention", "MLP", "optimizer", "ema", "modulation and norms"} <= set(result["parts"])
    assert 0 <= result["share_waiting_for_data"] < 1


def test_speed_flops_and_utilisation_agree(result):
    assert result["images_per_second"] == pytest.approx(32 / result["step_seconds"])
    assert result["flops_per_step"] == 32 * result["flops_per_image"]
    rate = result["flops_per_step"] / result["step_seconds"]
    assert result["utilisation"] == pytest.approx(rate / result["matmul_flops_per_second"])


def test_sampling_is_profiled_too_with_its_evaluations(call, tiny_gin, tmp_path):
    status, out, errors = call(
        "generate.batch_size = 8", "EulerMaruyama.num_evaluations = 4", "ClassifierFree.scale = 2.0",
        gin_file=tiny_gin, run_dir=tmp_path / "run", stage="sampling",
    )  # fmt: skip
    assert status == 0, errors
    result = json.loads((tmp_path / "run" / "profile" / "report.json").read_text())
    assert "# Profile of sampling" in out and result["images_per_step"] == 8
    with torch.device("meta"):  # each of the four evaluations is of both conditions
        channels = Channels(image=1, features=2)
        sides = {"width": 16, "depth": 1, "num_heads": 2, "size": "S/4"}
        model = DiffusionTransformer(channels=channels, grid=(8, 8), num_classes=10, **sides)
    assert result["flops_per_image"] == pytest.approx(8 * forward_flops(model))
    assert {"decode", "attention", "MLP"} <= set(result["parts"])


def test_an_existing_run_stays_as_it_is(call, tiny_gin, tmp_path, python):
    done = python("-m", "redi.train", f"--gin_file={tiny_gin}", "--run_dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    status, _, errors = call("train.batch_size = 8", "profile.num_steps = 1", run_dir=tmp_path / "run")
    assert status == 0, errors
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files} == before
    added = {
        path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*") if path not in before
    }
    assert "profile" in added and not (tmp_path / "run" / "profile" / "checkpoints").exists()


def test_what_cannot_be_profiled_is_refused(call, tiny_gin, tmp_path):
    def refused(*bindings, gin_file=tiny_gin):
        status, out, errors = call(*bindings, gin_file=gin_file, run_dir=tmp_path / "run")
        assert status == 1 and "Traceback" not in errors
        return errors

    assert "holds no run: pass a gin file with --gin_file" in refused(gin_file=())
    assert not (tmp_path / "run").exists()
    assert "profile.num_steps = 0 must be an integer" in refused("profile.num_steps = 0")
    assert "DiffusionTransformer.patch_size = 3" in refused("DiffusionTransformer.patch_size = 3")


# ---- from events to parts, for a GPU that is not there


def event(id, name, start, *, parent=None, kernel=0.0, sequence=-1, scope=0, named=False, seconds=0.0):
    return SimpleNamespace(
        id=id, name=name, device_type=torch.autograd.DeviceType.CPU, cpu_parent=parent, sequence_nr=sequence,
        scope=scope, is_user_annotation=named, self_cpu_time_total=1e6 * seconds,
        time_range=SimpleNamespace(start=start), kernels=[SimpleNamespace(duration=1e6 * kernel)],
    )  # fmt: skip


def test_what_the_backward_pass_does_belongs_to_the_part_of_the_forward_operation():
    forward = event(1, "forward", 0, named=True)
    mlp = event(2, "MLP", 1, parent=forward, named=True)
    product = event(3, "aten::addmm", 2, parent=mlp, kernel=40.0, sequence=7, seconds=1.0)
    loss = event(4, "aten::mean", 3, parent=forward, kernel=1.0, sequence=8, seconds=2.0)
    backward = event(5, "backward", 4, named=True, seconds=9.0)  # waiting in Python: of no operation
    of_loss = event(6, "MeanBackward0", 5, parent=backward, kernel=2.0, sequence=8, scope=1, seconds=3.0)
    of_product = event(7, "AddmmBackward0", 6, parent=backward, sequence=7, scope=1)
    gradient = event(8, "aten::mm", 7, parent=of_product, kernel=60.0, seconds=4.0)
    outside = event(9, "aten::add", 8, kernel=5.0, seconds=5.0)
    events = [forward, mlp, product, loss, backward, of_loss, of_product, gradient, outside]
    assert time_by_part(events, on_gpu=True) == {"MLP": 100.0, "forward": 1.0, "backward": 2.0, "other": 5.0}
    assert time_by_part(events, on_gpu=False) == {"MLP": 5.0, "forward": 2.0, "backward": 3.0, "other": 5.0}
