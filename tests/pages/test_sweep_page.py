"""The page of a sweep: the metrics, samples, curves or error of every point."""

import json
import re
import shutil

import pytest
import torch

from redi.pages.report import report
from redi.runtime.checksums import sealed

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>"


def read(folder) -> str:
    return report(folder).read_text(encoding="utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """The text of the sortable tables: tables, rows, cells."""
    found = []
    for table in re.findall(r'<table class="sortable"[^>]*>.*?</table>', text, re.DOTALL):
        rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        found.append([[re.sub("<.*?>", "", c) for c in re.findall(r"<t[dh].*?</t[dh]>", row)] for row in rows])
    return found


def test_a_table_of_groups_has_mean_and_spread_over_seeds(sweep_dir):
    groups = tables(read(sweep_dir))[0]
    assert groups[0] == ["PCA.rank", "JointCodec.fusion", "points", "fid_clean (lower is better)",
                         "recall (higher is better)"]  # fmt: skip
    assert groups[1] == ["2", "Merged", "2", "50.75 ± 0.71", "0.125 ± 0"]
    assert groups[3] == ["1", "Merged", "1 of 2", "100.5", "0.0625 ± 0.01"]  # one seed left: its own spread


def test_a_table_of_points_has_values_status_and_times(sweep_dir):
    points = tables(read(sweep_dir))[1]
    assert points[0][0] == "point" and points[0][-3:] == ["status", "train, s", "sample, s"]
    assert points[1] == ["rank=2,seed=0", "2", "Merged", "0", "50.25", "0.125 ± 0.01", "done", "11", "1.5"]
    assert points[6] == ["rank=1,seed=1", "1", "Merged", "1", "–", "–", "failed", "–", "–"]


def test_a_table_has_the_differences_from_the_baseline(sweep_dir):
    plan = json.loads((sweep_dir / "sweep.json").read_text())
    (sweep_dir / "sweep.json").write_text(json.dumps(plan | {"baseline": "rank=2"}))
    path = sweep_dir / "points" / "rank=10,seed=1" / "result.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text().replace("11.05", "10.05")))))
    groups, differences, _ = tables(read(sweep_dir))
    assert [row[:2] for row in groups] == [["point", "points"], ["rank=2", "2"], ["rank=10", "2"], ["rank=1", "1 of 2"]]
    heads, rank10, rank1 = differences
    assert heads == ["point", "fid_clean (lower is better)", "recall (higher is better)"]
    assert rank10[:2] == ["rank=10", "-40.7 ± 0.71 (0.00782)"] and rank1 == ["rank=1", "–", "–"]


def test_headers_are_buttons_and_cells_carry_the_values_that_they_are_sorted_by(sweep_dir):
    text = read(sweep_dir)
    assert '<th scope="col" aria-sort="none" class="number"><button type="button">PCA.rank</button></th>' in text
    assert '<td data-value="50.25" class="number">50.25</td>' in text
    assert '<td data-value="" class="number">–</td>' in text


def test_a_sweep_without_seeds_has_one_table(sweep_dir):
    description = json.loads((sweep_dir / "sweep.json").read_text())
    for point in description["points"]:
        point["group"] = point["name"]
    (sweep_dir / "sweep.json").write_text(json.dumps(description))
    assert len(tables(read(sweep_dir))) == 1


def test_of_how_many_samples_a_metric_is_stands_there(sweep_dir):
    text = read(sweep_dir)
    assert "fid_clean: 6 samples; recall: 6 samples." in text and "are not comparable" not in text


def test_points_with_other_numbers_of_samples_are_said_not_to_compare(sweep_dir):
    path = sweep_dir / "points" / "rank=2,seed=0" / "result.json"
    path.write_text(path.read_text().replace('"num_samples": 6', '"num_samples": 5000', 1))
    assert "fid_clean was measured on different numbers of samples (6, 5,000): the values" in read(sweep_dir)


def test_samples_of_all_points_that_kept_them_stand_side_by_side(sweep_dir):
    text = read(sweep_dir)
    strip = re.search(r'<table class="strip">.*?</table>', text, re.DOTALL)[0]
    assert strip.count("<img ") == 4 * 6 and strip.count("<tr>") == 1 + 4
    assert "3, label 1</th>" in strip and "seed 42" in strip
    assert "The images of a column start from the same noise and have the same label." in text
    sources = re.findall(r'alt="sample (\d) of ([^"]*)"[^>]*height="(\d+)"[^>]*src="([^"]*)"', strip)
    pictures = {(name, number): (int(height), source) for number, name, height, source in sources}
    assert pictures["rank=10,seed=0", "2"] == pictures["rank=10,seed=1", "2"]  # this fixture's are equal
    assert pictures["rank=10,seed=0", "2"] != pictures["rank=10,seed=0", "3"]
    assert pictures["rank=10,seed=0", "2"][0] == 64  # no colours are known
    assert pictures["rank=2,seed=0", "2"][0] == 64 + 64  # image above its features


def test_other_seeds_and_labels_are_said_to_be_others(sweep_dir, make):
    make.samples(sweep_dir / "points" / "rank=2,seed=0", seed=43)
    text = read(sweep_dir)
    assert "with equal seeds start from the same noise." in text
    heads = re.findall(r"<br>seed (\d+)</th>", text)
    assert heads == ["42", "42", "42", "43"]  # equal seeds stand together


def test_samples_that_are_damaged_are_said_and_the_others_shown(sweep_dir):
    (sweep_dir / "points" / "rank=2,seed=0" / "samples" / "part-00000.safetensors").write_bytes(b"short")
    text = read(sweep_dir)
    assert "The samples of rank=2,seed=0 cannot be shown:" in text and text.count('alt="sample ') == 3 * 6


def test_curves_of_all_models_share_a_panel(sweep_dir):
    text = read(sweep_dir)
    for title in ("training loss", "frechet_distance_domain_network_of_50, on few samples during training"):
        figure = re.search(f"<figcaption>{title}.*?</figure>", text, re.DOTALL)[0]
        assert figure.count('class="series"') == figure.count("<li>") == 6


def test_failures_are_listed_with_their_errors(sweep_dir):
    text = read(sweep_dir)
    assert "1 of 6 points failed" in text
    assert '<h3>rank=1,seed=1</h3>\n<pre tabindex="0">loss is &lt;nan&gt; at step 3</pre>\n<details>' in text
    assert "Traceback: ...\nValueError: loss is &lt;nan&gt;</pre></details>" in text


def test_a_point_that_has_not_run_is_said_to_be_so(sweep_dir):
    shutil.rmtree(sweep_dir / "points" / "rank=2,seed=0")
    text = read(sweep_dir)
    assert tables(text)[1][1][-3] == "not run yet" and "4 of 6 points are done" in text


def test_a_result_cut_short_is_said_and_the_others_shown(sweep_dir):
    path = sweep_dir / "points" / "rank=2,seed=0" / "result.json"
    path.write_text(path.read_text()[:50])
    text = read(sweep_dir)
    assert "points/rank=2,seed=0/result.json cannot be read, because it is truncated or altered" in text
    assert tables(text)[1][1][-3] == "damaged" and "2 of 6 points failed" in text and "10.05" in text


@pytest.mark.parametrize("content", ["{", "[]", '{"points": 3}', '{"points": [3, {"name": "../x"}, {"name": null}]}'])
def test_a_sweep_file_that_cannot_be_used_is_said(sweep_dir, content):
    (sweep_dir / "sweep.json").write_text(content)
    assert "sweep.json has no points." in read(sweep_dir)


def test_hostile_names_and_values_stay_text(sweep_dir):
    name = EVIL.replace("/", "-")
    point = sweep_dir / "points" / name
    (sweep_dir / "points" / "rank=2,seed=0").rename(point)
    metric = {"metric": EVIL, "value": EVIL, "spread": EVIL, "better": EVIL}
    good = {"metric": EVIL + "2", "value": 1.0, "better": "lower"}
    result = {"name": name, "status": "done", "metrics": [metric, good], "seconds": {EVIL: 1, "train": EVIL}}
    (point / "result.json").write_text(json.dumps(result))
    (sweep_dir / "points" / "rank=1,seed=1" / "error.txt").write_text(EVIL)
    description = json.loads((sweep_dir / "sweep.json").read_text())
    description["points"][0] |= {"name": name, "group": EVIL, "bindings": {EVIL: EVIL}}
    description["points"][1] |= {"bindings": "none"}
    description["axes"] = [EVIL, "PCA.rank"]
    (sweep_dir / "sweep.json").write_text(json.dumps(description))
    text = read(sweep_dir)
    assert text.count("<script>") == 1 and "<img src=x" not in text and 'onerror="' not in text
    assert text.count("&lt;script&gt;alert(1)") > 8


def test_the_fixture_s_samples_are_what_the_library_reads(sweep_dir):
    from redi.evaluation.samples.stored import load_samples

    samples = load_samples(sweep_dir / "points" / "rank=2,seed=0")
    samples.verify()
    drawn = samples.take(range(2, 5))
    assert drawn.labels.tolist() == [0, 1, 0] and drawn.x.shape == (3, 9, 4, 4) and drawn.images.dtype == torch.uint8
