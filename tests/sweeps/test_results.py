"""The tables and the plot of a sweep: numbers against NumPy, and what is missing."""

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ttest_rel

from redi.pages.sweep_results import SweepResults
from redi.runtime.checkpoint import Retention, save_checkpoint
from redi.sampling.networks import network_record
from redi.sweeps.launchers import note_end, start
from redi.sweeps.plan import PlannedPoint, write_plan
from redi.sweeps.point import is_done, write_result
from redi.sweeps.results import table_csv, table_markdown, write_results

VALUES = {"plain": [9.0, 9.4, 8.9], "rank=4": [4.125, 5.5, 4.0], "rank=8": [3.0]}


@pytest.fixture
def sweep(tmp_path):
    """The folder and points of a sweep of three groups; of the last, one seed failed and one was never begun."""
    planned = []
    for group, values in VALUES.items():
        setting = {"JointCodec.representations": "[]"} if group == "plain" else {"PCA.rank": group[5:]}
        for seed in range(3):
            bindings = {**setting, "train.seed": str(seed)}
            entry = PlannedPoint(f"{group},seed={seed}", group, bindings, text="", model=group, num_steps=1)
            entry.folder(tmp_path).mkdir(parents=True)
            planned.append(entry)
            if seed < len(values):
                write(tmp_path, entry, values[seed])
    write_plan(tmp_path, planned)
    (planned[-2].folder(tmp_path) / "error.txt").write_text("out of\nmemory | really\n\nTraceback ...")
    return tmp_path, planned


def write(folder: Path, entry: PlannedPoint, value: float, **more) -> None:
    metrics = [
        {"metric": "fid_clean", "value": value, "better": "lower", "num_samples": 10} | more,
        {"metric": "recall", "value": value / 10, "better": "higher", "num_samples": 10},
        {"metric": "agreement", "value": 0.5, "better": "closer to ceiling"},
    ]
    (entry.folder(folder) / "metrics.json").write_text(json.dumps(metrics))
    write_result(entry.folder(folder), entry, {"train": 1.0})


def test_the_csv_has_mean_and_sample_deviation_of_every_group(sweep):
    rows = list(csv.DictReader(io.StringIO(table_csv(SweepResults(sweep[0])))))
    assert [row["group"] for row in rows] == list(VALUES) and "train.seed" not in rows[0]
    for row, values in zip(rows, VALUES.values(), strict=True):
        assert int(row["num_points"]) == len(values)
        assert float(row["fid_clean_mean"]) == pytest.approx(np.mean(values), rel=1e-12)
        assert float(row["recall_mean"]) == pytest.approx(np.mean(values) / 10, rel=1e-12)
        if len(values) > 1:
            assert float(row["fid_clean_std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert rows[2]["fid_clean_std"] == ""
    assert (rows[0]["PCA.rank"], rows[0]["JointCodec.representations"], rows[1]["PCA.rank"]) == ("", "[]", "4")


def test_the_markdown_marks_direction_and_lists_what_is_missing(sweep):
    lines = table_markdown(SweepResults(sweep[0]), "ranks").splitlines()
    assert lines[0] == "# ranks" and lines[2] == "| point | fid_clean ↓ | recall ↑ | agreement → ceiling | seeds |"
    plain = f"| plain | 9.1 ± {np.std(VALUES['plain'], ddof=1):.2g} | 0.91 ± 0.026 | 0.5 ± 0 | 3 |"
    assert lines[4:7] == [plain, "| rank=4 | 4.542 ± 0.83 | 0.4542 ± 0.083 | 0.5 ± 0 | 3 |",
                          "| rank=8 | 3 | 0.3 | 0.5 | 1 |"]  # fmt: skip
    assert lines[-2:] == ["- rank=8,seed=1: out of memory | really", "- rank=8,seed=2: not done"]


def test_differences_from_the_baseline_are_paired_by_seed(sweep):
    folder, planned = sweep
    write_plan(folder, planned, baseline="plain")
    results = SweepResults(folder)
    plain, rank4, _ = list(csv.DictReader(io.StringIO(table_csv(results))))
    differences = np.subtract(VALUES["rank=4"], VALUES["plain"])
    assert float(rank4["fid_clean_difference"]) == pytest.approx(differences.mean(), rel=1e-12)
    assert float(rank4["fid_clean_difference_std"]) == pytest.approx(differences.std(ddof=1), rel=1e-12)
    p = ttest_rel(VALUES["rank=4"], VALUES["plain"]).pvalue
    assert float(rank4["fid_clean_p"]) == pytest.approx(p, rel=1e-9)
    assert plain["fid_clean_p"] == ""
    text = table_markdown(results, "ranks")
    assert "Difference from plain, seed by seed" in text
    assert f"| rank=4 | {differences.mean():+.3g} ± {differences.std(ddof=1):.2g} (p {p:.2g}) |" in text
    assert "| rank=8 | – | – | – |" in text  # one seed has no spread


def test_the_difference_is_that_of_the_seeds_that_both_have(sweep):
    folder, planned = sweep
    (planned[1].folder(folder) / "result.json").unlink()  # plain, seed 1
    write_plan(folder, planned, baseline="plain")
    results = SweepResults(folder)
    assert results.difference(results.groups[1], "fid_clean").mean == pytest.approx((4.125 + 4.0 - 9.0 - 8.9) / 2)


def test_the_spread_of_one_point_s_own_sampling_is_marked(sweep):
    folder, planned = sweep
    write(folder, planned[6], 3.0, spread=0.75)
    results = SweepResults(folder)
    text = table_markdown(results, "ranks")
    assert "| rank=8 | 3 ± 0.75 † |" in text and "† ± over the sampling seeds" in text
    assert list(csv.DictReader(io.StringIO(table_csv(results))))[2]["fid_clean_std"] == ""


@pytest.mark.parametrize(("spread", "marked"), [(0.70, True), (0.72, False), (None, False)])
def test_the_best_is_bold_where_it_is_better_by_more_than_both_spreads(sweep, spread, marked):
    """rank=4 has 4.5417 ± 0.8325: 3 is better by 1.5417."""
    folder, planned = sweep
    write(folder, planned[6], 3.0, spread=spread)
    results = SweepResults(folder)
    assert ("| **3 ± 0.7 †** |" in table_markdown(results, "ranks")) == marked
    assert (results.best("fid_clean") is results.groups[2]) == marked
    assert results.best("agreement") is None  # neither lower nor higher


def test_keys_keep_the_order_of_the_sweep_file_with_seeds_last(sweep):
    folder, planned = sweep
    write_plan(folder, planned, ["PCA.rank", "train.seed", "JointCodec.representations"])
    assert SweepResults(folder).axes == ["JointCodec.representations", "PCA.rank", "train.seed"]  # as it was begun
    (folder / "sweep.json").unlink()
    write_plan(folder, planned, ["PCA.rank", "train.seed", "JointCodec.representations"])
    assert SweepResults(folder).axes == ["PCA.rank", "JointCodec.representations", "train.seed"]
    write_plan(folder, planned, ["JointCodec.representations", "PCA.rank", "train.seed"])  # as gin sorts them
    assert SweepResults(folder).axes == ["PCA.rank", "JointCodec.representations", "train.seed"]


def test_all_results_are_written_and_the_plot_leaves_out_what_has_a_ceiling(sweep):
    folder, planned = sweep
    write(folder, planned[6], float("nan"))
    write_results(folder, SweepResults(folder))
    assert "| rank=8 | – | – |" in (folder / "results.md").read_text() and (folder / "results.csv").exists()
    with Image.open(folder / "results.png") as picture:
        assert picture.size == (2 * 750, 585) and len(picture.getcolors(1 << 20)) > 10


def test_a_point_counts_as_done_until_one_of_its_plug_ins_is_edited(sweep):
    folder, (plain, *_) = sweep
    assert is_done(folder, plain)  # what was written before plug-ins were noted, too
    mine = replace(plain, plug_ins={"lab.Mine": "1" * 64, "lab.typed_in": None})
    write(folder, mine, 9.0)
    assert is_done(folder, mine)
    assert not is_done(folder, replace(mine, plug_ins={"lab.Mine": "2" * 64, "lab.typed_in": None}))


def test_a_point_counts_as_done_until_a_network_of_its_guidance_changes(sweep):
    folder, (plain, *_) = sweep
    weights = {"weak": torch.zeros(1)}

    def train(step: int) -> None:
        save_checkpoint(folder / "weak", step, {"ema": weights}, {}, keep=Retention(1))

    train(1)
    settings = {"weak": str(folder / "weak"), "step": None}
    write(folder, plain, 9.0, samples={"networks": {"weak": network_record(settings)}})
    train(2)
    assert not is_done(folder, plain)
    write(folder, plain, 9.0, samples={"networks": {"weak": network_record(settings)}})
    assert is_done(folder, plain)
    weights["weak"] += 1
    train(2)
    assert not is_done(folder, plain)


def test_a_result_of_before_does_not_pass_for_that_of_a_process_that_dies(sweep, caplog):
    folder, (plain, *_) = sweep
    assert is_done(folder, plain)
    process = start(folder, plain, [sys.executable, "-c", "raise SystemExit(3)"], None)
    note_end(folder, plain, process.wait())
    assert not is_done(folder, plain) and "ended with status 3 and wrote no result" in caplog.text
