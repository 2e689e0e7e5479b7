"""The tables and the plot of a sweep: numbers against NumPy, and what is missing."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from redi.sweeps.plan import Planned
from redi.sweeps.plot import plot
from redi.sweeps.point import read_result, write_result
from redi.sweeps.results import Results, gather, table_csv, table_markdown

VALUES = {"plain": [9.0, 9.4, 8.9], "rank=4": [4.125, 5.5, 4.0], "rank=8": [3.0]}


def point(group: str, seed: int, **bindings: str) -> Planned:
    bindings = {**bindings, "train.seed": str(seed)}
    return Planned(f"{group},seed={seed}", group, bindings, text="", model=group, num_steps=1)


@pytest.fixture
def sweep(tmp_path):
    """A sweep's folder and plan: three groups; of the last, one seed failed and one was never begun."""
    planned = []
    for group, values in VALUES.items():
        bindings = {"JointCodec.representations": "[]"} if group == "plain" else {"PCA.rank": group[5:]}
        for seed in range(3):
            entry = point(group, seed, **bindings)
            entry.folder(tmp_path).mkdir(parents=True)
            planned.append(entry)
            if seed < len(values):
                write(tmp_path, entry, values[seed])
    (planned[-2].folder(tmp_path) / "error.txt").write_text("out of\nmemory | really\n\nTraceback ...")
    return tmp_path, planned


def write(folder: Path, entry: Planned, value: float, **more) -> None:
    metrics = [
        {"metric": "fid_clean", "value": value, "better": "lower", "num_samples": 10} | more,
        {"metric": "recall", "value": value / 10, "better": "higher", "num_samples": 10},
    ]
    result = {"name": entry.name, "status": "done", "metrics": metrics}
    (entry.folder(folder) / "result.json").write_text(json.dumps(result))


def test_the_csv_has_mean_and_sample_deviation_of_every_group(sweep):
    rows = list(csv.DictReader(io.StringIO(table_csv(gather(*sweep)))))
    assert [row["group"] for row in rows] == list(VALUES)
    for row, values in zip(rows, VALUES.values(), strict=True):
        assert int(row["num_points"]) == len(values)
        assert float(row["fid_clean_mean"]) == pytest.approx(np.mean(values), rel=1e-12)
        assert float(row["recall_mean"]) == pytest.approx(np.mean(values) / 10, rel=1e-12)
        if len(values) > 1:
            assert float(row["fid_clean_std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert rows[2]["fid_clean_std"] == ""
    assert (rows[0]["PCA.rank"], rows[0]["JointCodec.representations"], rows[1]["PCA.rank"]) == ("", "[]", "4")


def test_the_markdown_marks_direction_and_best_and_lists_what_is_missing(sweep):
    lines = table_markdown(gather(*sweep), "ranks").splitlines()
    assert lines[0] == "# ranks" and lines[2] == "| point | fid_clean ↓ | recall ↑ | seeds |"
    assert lines[4] == f"| plain | 9.1 ± {np.std(VALUES['plain'], ddof=1):.2g} | **0.91 ± 0.026** | 3 |"
    assert lines[5] == "| rank=4 | 4.542 ± 0.83 | 0.4542 ± 0.083 | 3 |"
    assert lines[6] == "| rank=8 | **3** | 0.3 | 1 |"
    assert lines[-2:] == ["- rank=8,seed=1: out of memory | really", "- rank=8,seed=2: not done"]


def test_the_spread_of_one_point_s_own_sampling_is_marked(sweep):
    folder, planned = sweep
    write(folder, planned[6], 3.0, spread=0.25)
    text = table_markdown(gather(folder, planned), "ranks")
    assert "| rank=8 | **3 ± 0.25 †** |" in text and "† ± over the seeds of the sampling" in text


def test_a_value_that_is_no_number_counts_as_none(sweep):
    folder, planned = sweep
    write(folder, planned[6], float("nan"))
    results = gather(folder, planned)
    assert results.rows[2].mean("fid_clean") is None
    assert "| rank=8 | – | – | 1 |" in table_markdown(results, "ranks")
    plot(folder / "plot.png", results)


@pytest.mark.parametrize("damage", ["", '{"name": "plain,seed=0", "status": "do', "[]", '{"status": "done"}'])
def test_a_damaged_result_counts_as_not_done_and_is_named(sweep, damage, caplog):
    folder, planned = sweep
    path = planned[0].folder(folder) / "result.json"
    assert read_result(path.parent)["metrics"][0]["value"] == 9.0
    path.write_text(damage)
    results = gather(folder, planned)
    assert results.missing["plain,seed=0"] == "not done" and results.rows[0].num_points == 2
    assert f"{path} is cut short or was edited" in caplog.text


def test_every_bit_of_a_result_counts(sweep):
    folder, planned = sweep
    (planned[0].folder(folder) / "metrics.json").write_text(json.dumps([{"metric": "fid_clean", "value": 9.25}]))
    write_result(planned[0].folder(folder), planned[0], {})
    path = planned[0].folder(folder) / "result.json"
    whole, content = read_result(path.parent), path.read_bytes()
    assert whole["metrics"] == [{"metric": "fid_clean", "value": 9.25}]
    for position in range(len(content)):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ (1 << position % 8)]) + content[position + 1 :]
        )
        found = read_result(path.parent)
        assert found is None or {key: found[key] for key in whole} == whole, position


def test_a_result_that_was_copied_from_another_point_does_not_count(sweep):
    folder, planned = sweep
    stolen = (planned[1].folder(folder) / "result.json").read_text()
    (planned[0].folder(folder) / "result.json").write_text(stolen)
    assert read_result(planned[0].folder(folder)) is None


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def test_the_plot_has_a_panel_for_each_metric(sweep):
    folder, planned = sweep
    results = gather(folder, planned)
    plot(folder / "two.png", results)
    plot(folder / "one.png", Results(results.rows, {"fid_clean": "lower"}, {}))
    two, one = (picture(folder / name) for name in ("two.png", "one.png"))
    assert two.width == 2 * one.width and two.height == one.height
    assert len(two.getcolors(1 << 20)) > 10


def test_a_sweep_of_which_nothing_is_done_has_no_plot(tmp_path):
    plot(tmp_path / "plot.png", Results([], {}, {}))
    assert list(tmp_path.iterdir()) == []
