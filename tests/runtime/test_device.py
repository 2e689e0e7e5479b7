import importlib.util
import sysconfig

import pytest
import torch

from redi.runtime.device import (
    choose_compile,
    choose_device,
    choose_precision,
    compile_full_graph,
    free_memory,
    group_memory,
    matmul_precision,
)

CPU = torch.device("cpu")


def test_auto_takes_the_gpu_where_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_device_is_taken_by_name():
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["nonsense", "", "cuda:99", None, 1.5])
def test_a_device_that_is_not_here_is_refused_with_its_binding(name):
    with pytest.raises(ValueError) as error:
        choose_device(name)
    text = str(error.value)
    assert text.startswith(f"train.device = {name!r} is not available: ") and "Set train.device = 'auto'" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "resolved", "dtype"),
    [
        ("auto", "float32", torch.float32), ("float32", "float32", torch.float32),
        ("tf32", "tf32", torch.float32), ("bfloat16", "bfloat16", torch.bfloat16),
    ],
)  # fmt: skip
def test_precisions_on_the_cpu(name, resolved, dtype):
    chosen = choose_precision(name, CPU)
    assert (chosen.name, chosen.dtype) == (resolved, dtype)
    with chosen.autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("name", ["float16", "bf16", "", None, torch.bfloat16])
def test_an_unknown_precision_is_refused_with_its_binding(name):
    with pytest.raises(ValueError, match="^train.precision = .* must be 'auto', 'float32', 'tf32' or 'bfloat16'$"):
        choose_precision(name, CPU)
    with pytest.raises(ValueError, match="^generate.precision = "):
        choose_precision(name, CPU, "generate.precision")


@pytest.mark.parametrize(
    ("name", "products", "convolutions"),
    [("float32", "highest", False), ("tf32", "high", True), ("bfloat16", "high", True)],
)
def test_float32_products_are_rounded_where_the_precision_allows_it_and_nowhere_else(name, products, convolutions):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with pytest.raises(RuntimeError, match="whatever"), matmul_precision(name):
        assert torch.get_float32_matmul_precision() == products
        assert torch.backends.cudnn.allow_tf32 is convolutions
        raise RuntimeError("whatever")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_auto_compiles_on_a_gpu_alone():
    assert choose_compile("auto", CPU) is False
    assert choose_compile(False, torch.device("cuda")) is False
    assert choose_compile("auto", torch.device("cuda")) is (importlib.util.find_spec("triton") is not None)


def test_compiling_without_a_compiler_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match="^generate.compile = True needs a C.. compiler .*: install it or set"):
        choose_compile(True, CPU, "generate.compile")
    assert choose_compile("auto", torch.device("cuda")) is False


def test_compiling_without_the_headers_of_python_is_refused_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match="^train.compile = True needs Python.h "):
        choose_compile(True, CPU)
    assert choose_compile("auto", torch.device("cuda")) is False


def test_bfloat16_that_a_gpu_only_emulates_is_not_taken_by_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_precision("auto", torch.device("cuda")).name == "float32"


def test_one_function_is_compiled_for_any_number_of_shapes(monkeypatch):
    """By default torch raises an error beyond 8 full graphs."""
    compile, graphs = torch.compile, []
    backend = lambda graph, inputs: graphs.append(graph) or graph.forward  # noqa: E731
    monkeypatch.setattr(torch, "compile", lambda function, **settings: compile(function, backend=backend, **settings))
    double = compile_full_graph(lambda x: 2 * x)
    for size in range(1, 13):
        assert double(torch.ones(size)).sum() == 2 * size
    assert len(graphs) > 8


@pytest.mark.parametrize("value", ["yes", None, 2])
def test_another_value_for_compile_is_refused(value):
    with pytest.raises(ValueError, match="^train.compile = .* must be 'auto', True or False$"):
        choose_compile(value, CPU)


def test_the_free_memory_of_the_host_is_a_part_of_it():
    free, total = free_memory(torch.device("cpu"))
    assert 0 < free and 2**28 < total < 2**50


@pytest.mark.parametrize(
    ("limit", "usage", "kept", "none"),
    [
        ("memory.max", "memory.current", "inactive_file", "max"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "9223372036854771712"),
    ],
)
def test_the_tightest_limit_of_a_control_group_and_those_above_it_counts(tmp_path, limit, usage, kept, none):
    groups = {tmp_path: (none, 900), tmp_path / "job": (1000, 400), tmp_path / "job/step": (none, 300)}
    for folder, (allowed, used) in groups.items():
        folder.mkdir(exist_ok=True)
        (folder / limit).write_text(f"{allowed}\n")
        (folder / usage).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{kept} 100\n")  # files, which make way
    assert group_memory(tmp_path, "job/step") == (1000, 300)
    assert group_memory(tmp_path / "nowhere", "job")[0] > 1e15
