"""experiments/table.py: the record of a sweep against the paired t-test in closed form, and its errors."""

import json
import runpy
import statistics
import sys

import pytest

from redi.runtime.checksums import sealed
from tests.rows import ROOT

VALUES = {"plain": (2.5, 2.6, 2.2), "redi": (0.7, 0.9, 0.8), "short": (1.0,)}


@pytest.fixture
def table(tmp_path, monkeypatch, capsys):
    """Run the script on a sweep of three seeds, in which one point has a single seed; return its output."""
    points = [(name, seed) for name in VALUES for seed in range(3)]
    plan = [{"name": f"{n}-{s}", "group": n, "bindings": {"train.seed": str(s), "point": n}} for n, s in points]
    (tmp_path / "sweep.json").write_text(json.dumps({"axes": ["point", "train.seed"], "points": plan}))
    for name, values in VALUES.items():
        for seed, value in enumerate(values):
            metrics = [{"metric": "frechet_distance_x", "value": value, "floor": 0.5, "better": "lower"}]
            metrics += [{"metric": "recognised", "value": 0.25}] if name == "redi" else []
            (folder := tmp_path / "points" / f"{name}-{seed}").mkdir(parents=True)
            result = sealed({"name": folder.name, "status": "done", "metrics": metrics})
            (folder / "result.json").write_text(json.dumps(result))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path), "--folder", str(tmp_path / "out"), *arguments])
        runpy.run_path(str(ROOT / "experiments" / "table.py"), run_name="__main__")
        return capsys.readouterr().out, json.loads((tmp_path / "out" / "results.json").read_text())

    return run


def test_the_record_has_every_seed_and_the_paired_test(table):
    out, rows = table("--metrics", "distance=frechet", "recognised", "--against", "plain", "redi")
    assert rows["redi"]["distance"]["values"] == list(VALUES["redi"])
    against = rows["redi"]["distance"]["against"]
    assert set(against) == {"plain"}
    differences = [ours - theirs for ours, theirs in zip(VALUES["redi"], VALUES["plain"], strict=True)]
    t = statistics.fmean(differences) / (statistics.stdev(differences) / 3**0.5)
    assert against["plain"]["p"] == pytest.approx(1 - abs(t) / (2 + t**2) ** 0.5)  # two degrees of freedom
    assert against["plain"]["mean"] == pytest.approx(-4.9 / 3)
    assert "recognised" not in rows["plain"] and "against" not in rows["short"]["distance"]
    assert out.splitlines()[0] == "| point | distance | against plain | against redi | recognised | seeds |"
    assert "| short | 1 |  |  |  | 1 |" in out and "Floor of distance: 0.5." in out


@pytest.mark.parametrize("arguments", [("--against", "other"), ("--metrics", "fid")])
def test_an_unknown_point_or_metric_is_an_error_that_names_the_known_ones(table, arguments, capsys):
    with pytest.raises(SystemExit):
        table(*arguments)
    known = "plain, redi, short" if "other" in arguments else "frechet_distance_x, recognised"
    assert known in capsys.readouterr().err
