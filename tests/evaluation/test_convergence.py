"""The convergence factor: exact on exponential curves, bounded where a target is never reached, clear on bad input."""

import json
import math

import numpy as np
import pytest
import torch

from redi.evaluation.convergence import Curve, convergence_factor, format_convergence, read_curve
from redi.runs.convergence import run_folders, warn_of_different_measures
from redi.runtime.checkpoint import Retention, save_checkpoint

STEPS = np.arange(100, 1100, 100)


def decay(rate: float, name: str = "run", start: float = 10.0) -> Curve:
    return Curve(name, STEPS.astype(float), start * np.exp(-rate * STEPS))


def test_a_curve_that_falls_k_times_as_fast_has_the_factor_k():
    # In the logarithm these are straight lines, so the interpolation is exact.
    for k in (1.0, 1.7, 4.0):
        result = convergence_factor(baseline=[decay(1e-3)], method=[decay(k * 1e-3)])
        assert result["factor"] == pytest.approx(k, rel=1e-9)
        assert result["low"] == pytest.approx(k) and result["high"] == pytest.approx(k)
        assert result["not_reached"] == 0


def test_the_factor_is_the_geometric_mean_over_all_pairs():
    baselines, methods = [decay(1e-3, "b0"), decay(2e-3, "b1")], [decay(4e-3, "m0"), decay(3e-3, "m1")]
    result = convergence_factor(baseline=baselines, method=methods)
    # b1 ends twice as low in the logarithm, so it takes the method twice as long.
    expected = [4, 3, 4 / 2, 3 / 2]
    assert [pair["factor"] for pair in result["pairs"]] == pytest.approx(expected)
    assert result["factor"] == pytest.approx(math.prod(expected) ** (1 / 4))
    assert 1.5 <= result["low"] < result["factor"] < result["high"] <= 4


def test_baselines_against_each_other_show_what_noise_alone_gives():
    low, high = decay(1e-3, "low"), decay(1e-3, "high", start=11.0)
    result = convergence_factor(baseline=[low, high], method=[decay(2e-3)])
    # low comes down to where high ends a little before its end; high never gets to where low ends.
    assert result["null"] == pytest.approx([1.0, 1000 / (1000 - math.log(1.1) / 1e-3)])
    assert "baselines compared with each other: 1.00 to 1.11" in format_convergence(result)
    assert convergence_factor(baseline=[low], method=[high])["null"] == []


def test_a_target_that_is_met_at_once_gives_a_lower_bound():
    result = convergence_factor(baseline=[decay(1e-3)], method=[decay(0.1)])
    assert result["at_once"] == 1 and result["factor"] == pytest.approx(10)
    assert json.loads(json.dumps(result)) == result
    assert "the factor is a lower bound" in format_convergence(result)


def test_equal_seeds_leave_no_interval():
    result = convergence_factor(baseline=[decay(1e-3)] * 3, method=[decay(2e-3)] * 3)
    assert result["low"] == pytest.approx(2) and result["high"] == pytest.approx(2)


def test_many_seeds_are_resampled_at_random_and_repeatably():
    rng = np.random.default_rng(1)
    methods = [decay(2e-3 * math.exp(0.1 * rng.normal()), f"m{i}") for i in range(8)]
    first, second = (convergence_factor(baseline=[decay(1e-3)] * 8, method=methods) for _ in range(2))
    assert first == second
    # The standard error of the mean of 8 logarithms with deviation 0.1, twice to each side.
    assert math.log(first["high"] / first["low"]) == pytest.approx(4 * 0.1 / math.sqrt(8), rel=0.5)


def test_a_target_that_is_never_reached_gives_an_upper_bound():
    result = convergence_factor(baseline=[decay(2e-3)], method=[decay(1e-3, "slow")])
    assert result["not_reached"] == 1 and result["factor"] == pytest.approx(1)
    text = format_convergence(result)
    assert "at most 1.00" in text and "slow: never" in text


def test_the_first_crossing_counts_even_if_the_curve_rises_again():
    curve = Curve("run", np.array([100.0, 200.0, 300.0]), np.array([4.0, 1.0, 3.0]))
    assert curve.first_step_at(2.0) == pytest.approx(150)
    assert curve.first_step_at(5.0) == 100 and curve.first_step_at(0.5) is None


def test_a_curve_is_read_from_the_log_of_a_run(tmp_path):
    lines = [{"step": 1, "loss": 3.0}, {"step": 10, "monitor/fd_of_5": 2.0}, {"step": 20, "monitor/fd_of_5": 1.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = read_curve(tmp_path, "fd_of_5")
    assert curve.steps.tolist() == [10, 20] and curve.last == (20, 1.0)
    with pytest.raises(ValueError, match=r"no curve of 'fid': choose from fd_of_5"):
        read_curve(tmp_path, "fid")


def test_a_run_without_a_monitor_is_told_how_to_get_one(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 3.0}) + "\n")
    with pytest.raises(ValueError, match=r"train it with train\.monitor \(see monitor\.gin\)"):
        read_curve(tmp_path, "fd")


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf])
def test_values_that_are_no_distances_are_refused(tmp_path, value):
    lines = [{"step": 1, "monitor/fd": 3.0}, {"step": 2, "monitor/fd": value}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="not positive and finite"):
        read_curve(tmp_path, "fd")


def test_a_side_without_runs_is_refused():
    with pytest.raises(ValueError, match="0 baseline and 1 method runs"):
        convergence_factor(baseline=[], method=[decay(1e-3)])


def test_a_pattern_without_runs_is_refused_and_a_run_named_twice_counts_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log.jsonl").write_text("")
    assert run_folders("method", [str(tmp_path / "a"), str(tmp_path / "*")]) == [tmp_path / "a"]
    with pytest.raises(ValueError, match="--method=.*nowhere matches no folder"):
        run_folders("method", [str(tmp_path / "a"), str(tmp_path / "nowhere")])


def test_the_program_warns_of_runs_that_were_measured_otherwise(tmp_path, caplog):
    for name, count in (("plain", 500), ("redi", 400)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.gin").write_text(f"Monitor.num_images = {count}\ntrain.seed = {count}\n")
    warn_of_different_measures([tmp_path / "plain", tmp_path / "redi"])
    [record] = caplog.records
    assert record.getMessage().endswith("Monitor.num_images")


def test_runs_of_images_that_lay_elsewhere_compare_and_those_of_other_images_do_not(tmp_path, caplog):
    for name, contents in (("first", "a"), ("moved", "a"), ("older", None), ("other", "b")):
        record = {"dataset_contents": contents} if contents else {}
        save_checkpoint(tmp_path / name, 1, {"ema": {"w": torch.ones(1)}}, record, Retention(1))
        (tmp_path / name / "config.gin").write_text(f"IMAGES = '{name}'\nImageFolder.path = %IMAGES\n")
    warn_of_different_measures([tmp_path / name for name in ("first", "moved", "older", "other")])
    [message] = caplog.messages
    assert message.endswith(": images") and f"{tmp_path / 'other'} and" in message
