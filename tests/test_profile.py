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
from redi.runs.trace import costs

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
    assert sum(result["parts"].values()) == pytest.approx(result["share_device_busy"])
    assert {"attention", "MLP", "optimizer", "ema", "modulation and norms", "data"} <= set(result["parts"])
    assert 0 <= result["share_waiting_for_data"] < 1


def test_speed_flops_and_utilisation_agree(result):
    assert result["images_per_second"] == pytest.approx(32 / result["step_seconds"])
    assert result["flops_per_step"] == 32 * result["flops_per_image"]
    rate = result["flops_per_step"] / result["step_seconds"]
    assert result["utilisation"] == pytest.approx(rate / result["matmul_flops_per_second"])


def test_the_matrix_products_of_the_trace_are_three_forward_passes(result):
    # Attention is missing in the trace, and the gradients of inputs that nobody asks for (patches, sinusoids).
    assert 0.9 < result["matrix_flops_in_trace_per_step"] / result["flops_per_step"] < 1.0


def test_sampling_is_profiled_too_with_its_evaluations(call, tiny_gin, tmp_path):
    status, out, errors = call(
        "generate.batch_size = 8", "EulerMaruyama.num_evaluations = 4", "ClassifierFree.scale = 2.0",
        gin_file=tiny_gin, run_dir=tmp_path / "run", stage="sampling",
    )  # fmt: skip
    assert status == 0, errors
    result = json.loads((tmp_path / "run" / "profile" / "report.json").read_text())
    assert "# Profile of sampling" in out and result["images_per_step"] == 8
    # Each of the four evaluations is of both conditions; attention is missing in the trace.
    assert 0.9 < result["matrix_flops_in_trace_per_step"] / result["flops_per_step"] <= 1.0
    assert {"decode", "attention", "MLP"} <= set(result["parts"])


def test_an_existing_run_stays_as_it_is(call, tiny_gin, tmp_path):
    done = shell("-m", "redi.train", f"--gin_file={tiny_gin}", "--run_dir=run", cwd=tmp_path)
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

    assert "holds no run: name a gin file with --gin_file" in refused(gin_file=())
    assert not (tmp_path / "run").exists()
    assert "profile.num_steps = 0: a whole number" in refused("profile.num_steps = 0")
    assert "DiffusionTransformer.patch_size = 3" in refused("DiffusionTransformer.patch_size = 3")


# ---- from events to costs, for a GPU that is not there

CPU, CUDA = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA


def event(id, name, start, *, parent=None, kernels=(), sequence=-1, scope=0, named=False, flops=0, own=0.0):
    return SimpleNamespace(
        id=id, name=name, device_type=CPU, cpu_parent=parent, sequence_nr=sequence, scope=scope, flops=flops,
        is_user_annotation=named, self_cpu_time_total=own, time_range=SimpleNamespace(start=start),
        kernels=[SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels],
    )  # fmt: skip


def kernel(name, microseconds, *, named=False):
    time_range = SimpleNamespace(elapsed_us=lambda: microseconds)
    return SimpleNamespace(name=name, device_type=CUDA, is_user_annotation=named, time_range=time_range)


def test_kernels_belong_to_the_part_that_launched_them_and_those_of_graphs_are_not_lost():
    forward = event(1, "forward", 0, named=True)
    mlp = event(2, "MLP", 1, parent=forward, named=True)
    product = event(3, "aten::addmm", 2, parent=mlp, kernels=[("gemm", 40.0)], sequence=7, flops=1000)
    backward = event(4, "backward", 3, named=True)
    node = event(5, "AddmmBackward0", 4, parent=backward, sequence=7, scope=1)
    gradient = event(6, "aten::mm", 5, parent=node, kernels=[("gemm", 60.0)], flops=1000)
    device = [kernel("gemm", 40.0), kernel("gemm", 60.0), kernel("gemm", 5.0), kernel("flash_fwd", 10.0)]
    found = costs(
        [forward, mlp, product, backward, node, gradient, *device, kernel("forward", 99.0, named=True)], on_gpu=True
    )
    assert [(c.name, c.belongs_to, c.calls, round(c.seconds * 1e6), c.flops) for c in found] == [
        ("gemm", "MLP", 2, 100, 2000), ("flash_fwd", "attention", 1, 10, 0), ("gemm", "graph", 1, 5, 0),
    ]  # fmt: skip


def test_on_the_cpu_ranges_stand_for_python_between_operations():
    ema = event(1, "ema", 0, named=True, own=3.0)
    lerp = event(2, "aten::_foreach_lerp_", 1, parent=ema, own=7.0)
    found = costs([ema, lerp], on_gpu=False)
    assert [(c.belongs_to, round(c.seconds * 1e6)) for c in found] == [("ema", 7), ("ema", 3)]
    assert found[1].name.startswith("Python")
