"""The scripts of benchmarks/: each imports, and says how it is called; parts of what they do that can be checked."""

import ast
import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if '"__main__"' in path.read_text())


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "ledger.py"])
def test_a_benchmark_says_how_it_is_called(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    assert ended.value.code == 0
    first_line = ast.get_docstring(ast.parse((BENCHMARKS / name).read_text())).splitlines()[0]
    assert first_line in capsys.readouterr().out


def test_the_kernels_of_a_call_are_named_the_most_expensive_first():
    from kernels import kernel_names

    x = torch.randn(256, 256)
    names = kernel_names(lambda: (x @ x + 1).tanh(), "cpu").split(", ")
    assert {"aten::mm", "aten::tanh"} <= set(names) and len(names) <= 4


def test_cached_batches_are_what_encoding_gives(tmp_path):
    # Of the setup that needs no weights; the other's batches are made up with the shapes of docs/cache.md.
    from setups import SETUPS, make_batch, make_codec

    for name, channels in (("quickstart", (9, 8, 8)), ("B/2", (12, 32, 32))):
        codec = make_codec(SETUPS[name])
        batch = make_batch(SETUPS[name], codec, 3)
        assert codec.join(batch).shape == (3, *channels)
        assert batch["labels"].max() < SETUPS[name].num_classes


@pytest.mark.parametrize(("name", "millions"), [("B/2", 130), ("XL/2", 675)])
def test_the_large_setups_are_the_papers_models(name, millions):
    from setups import SETUPS, make_codec, make_model

    codec = make_codec(SETUPS[name])
    with torch.device("meta"):
        model, _ = make_model(SETUPS[name], codec, device="meta", trained=False)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.01)


def test_a_trained_setup_has_no_weight_of_zeros():
    from setups import SETUPS, make_codec, make_model

    model, _ = make_model(SETUPS["quickstart"], make_codec(SETUPS["quickstart"]))
    assert all(parameter.any() for parameter in model.parameters())


def test_utilisation_counts_three_forward_passes_of_the_model():
    from training import rows_of

    measured = {
        "seconds": {"plain loop": (4.0, 4.0), "fast": (1.0, 2.0)}, "first_seconds": {"plain loop": 5.0, "fast": 31.5},
        "flops": {"plain loop": 6e9, "fast": 6e9}, "matmul_rate": 96e9, "nominal_rate": None,
    }  # fmt: skip
    rows = rows_of(measured, 8, {"plain loop": {}, "fast": {"compiled": True}}, "plain loop")
    assert rows[0]["share_of_matmul_rate"] == 6e9 * 8 / 4.0 / 96e9
    assert rows[1]["images_per_second"] == 8 / 1.5
    assert rows[1]["compile_seconds"] == 30.0
    assert rows[1]["ratio_to_plain"] == 3.0


def test_differences_of_losses_are_relative_and_of_smoothed_curves():
    from quality import compared

    reference = torch.full((40,), 2.0)
    losses = reference + 0.2 * torch.tensor([1.0, -1.0]).repeat(20)  # the window of 20 averages it away
    row = compared(losses, {"w": torch.tensor([3.0, 4.0])}, reference, {"w": torch.tensor([3.0, 3.0])})
    assert row["loss_difference_max"] < 1e-6
    assert row["weights_difference"] == pytest.approx(1 / 18**0.5)
    shorter = compared(losses[:20] * 1.5, {}, reference, {"w": torch.ones(1)})
    assert shorter["loss_difference_max"] == pytest.approx(0.5)
    assert "weights_difference" not in shorter  # after fewer steps they are not comparable
