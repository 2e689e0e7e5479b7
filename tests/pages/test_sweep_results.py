"""Reading a sweep: damaged results and results of other points do not count as done."""

import json

import numpy as np
import pytest

from redi.pages.sweep_results import SweepResults, read_result
from redi.runtime.checksums import sealed


def test_a_group_has_mean_and_sample_deviation_over_its_seeds(sweep_dir):
    results = SweepResults(sweep_dir)
    values = [10.05, 11.05]
    group = results.groups[1]
    assert (group.name, group.num_done, results.group_axes) == ("rank=10", 2, ["PCA.rank", "JointCodec.fusion"])
    assert group.mean("fid_clean") == pytest.approx(np.mean(values), rel=1e-12)
    assert group.spread("fid_clean") == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert results.groups[2].spread("recall") == 0.01  # one seed is left: that of its own sampling
    assert results.metrics == {"fid_clean": "lower", "recall": "higher"} and results.num_samples("recall") == [6]
    assert results.missing == {"rank=1,seed=1": "loss is <nan> at step 3"}


def test_a_value_that_is_not_a_number_counts_as_none(sweep_dir):
    path = sweep_dir / "points" / "rank=1,seed=0" / "result.json"
    path.write_text(path.read_text().replace("100.5", "NaN"))
    group = SweepResults(sweep_dir).groups[2]
    assert group.mean("fid_clean") is None and group.spread("fid_clean") is None and group.num_done == 1


@pytest.mark.parametrize("damage", ["", '{"name": "rank=2,seed=0", "status": "do', "[]", '{"status": "done"}'])
def test_a_damaged_result_counts_as_not_done_and_is_named(sweep_dir, damage, caplog):
    path = sweep_dir / "points" / "rank=2,seed=0" / "result.json"
    assert read_result(path.parent)["metrics"][0]["value"] == 50.25
    path.write_text(damage)
    results = SweepResults(sweep_dir)
    assert "result.json cannot be read" in results.missing["rank=2,seed=0"] and results.groups[0].num_done == 1
    assert f"{path} is truncated or altered" in caplog.text


def test_every_bit_of_a_result_counts(tmp_path):
    result = {"name": tmp_path.name, "status": "done", "metrics": [{"metric": "fid_clean", "value": 9.25}]}
    path = tmp_path / "result.json"
    path.write_text(json.dumps(sealed(result)))
    content = path.read_bytes()
    assert read_result(tmp_path) == result
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        read = read_result(tmp_path)
        assert read is None or {key: read[key] for key in result} == result, position


def test_a_result_that_was_copied_from_another_point_does_not_count(sweep_dir):
    first, second = (sweep_dir / "points" / f"rank=2,seed={seed}" for seed in (0, 1))
    (first / "result.json").write_text((second / "result.json").read_text())
    assert read_result(first) is None and read_result(second)


def test_a_point_s_folder_outside_of_the_sweep_is_not_read(sweep_dir):
    description = json.loads((sweep_dir / "sweep.json").read_text())
    description["points"][0]["model"] = "../../models/rank=10,seed=0"
    description["points"].append({"name": "../points/rank=10,seed=0"})
    (sweep_dir / "sweep.json").write_text(json.dumps(description))
    results = SweepResults(sweep_dir)
    assert len(results.points) == 6 and results.points[0].model == ""


def test_results_show_a_row_for_each_group_and_a_column_for_each_metric(sweep_dir):
    results = SweepResults(sweep_dir)
    assert repr(results) == f"<SweepResults {sweep_dir}: 5 of 6 points done>"
    shown = results._repr_html_()
    assert shown.count("<tr>") == 1 + 3 and "rank=2" in shown and "fid_clean" in shown and "50.75 ± 0.71" in shown
