"""The page of a sweep: every point's numbers, samples, curves or error."""

import json
import re
import shutil

import pytest
import torch

from redi.pages.report import report
from redi.pages.sweep_results import SweepResults, gin_number, gin_words

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>"


def read(folder) -> str:
    return report(folder).read_text(encoding="utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """The cells' text of the tables that sort: tables, rows, cells."""
    found = []
    for table in re.findall(r'<table class="sortable"[^>]*>.*?</table>', text):
        rows = re.findall(r"<tr>.*?</tr>", table)
        found.append([[re.sub("<.*?>", "", c) for c in re.findall(r"<t[dh].*?</t[dh]>", row)] for row in rows])
    return found


def test_a_table_of_groups_has_mean_and_spread_over_seeds(sweep_dir):
    groups = tables(read(sweep_dir))[0]
    assert groups[0] == ["PCA.rank", "JointCodec.fusion", "points", "fid clean (lower is better)",
                         "recall (higher is better)"]  # fmt: skip
    assert groups[1] == ["2", "Merged", "2", "50.75 ± 0.71", "0.125 ± 0"]
    assert groups[3] == ["1", "Merged", "1 of 2", "100.5", "0.0625 ± 0.01"]  # one seed left: its own spread


def test_a_table_of_points_has_values_status_and_times(sweep_dir):
    points = tables(read(sweep_dir))[1]
    assert points[0][0] == "point" and points[0][-3:] == ["status", "train, s", "sample, s"]
    assert points[1] == ["rank=2,seed=0", "2", "Merged", "0", "50.25", "0.125 ± 0.01", "done", "11", "1.5"]
    assert points[6] == ["rank=1,seed=1", "1", "Merged", "1", "–", "–", "failed", "–", "–"]


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


def test_every_metric_is_plotted_against_the_first_number_that_is_swept(sweep_dir):
    text = read(sweep_dir)
    assert "<figcaption>fid clean (lower is better)</figcaption>" in text
    values = re.findall(r"<title>fid clean: ([^<]*)</title>", text)
    assert values == ["100.5 at 1", "50.75 ± 0.7071 at 2", "10.55 ± 0.7071 at 10"]  # in the order of the ranks
    assert ">PCA.rank</text>" in text


def test_of_how_many_samples_a_metric_is_stands_there(sweep_dir):
    text = read(sweep_dir)
    assert "fid clean: of 6 samples; recall: of 6 samples." in text and "do not compare" not in text


def test_points_with_other_numbers_of_samples_are_said_not_to_compare(sweep_dir):
    path = sweep_dir / "points" / "rank=2,seed=0" / "result.json"
    path.write_text(path.read_text().replace('"num_samples": 6', '"num_samples": 5000', 1))
    assert "fid clean was measured on different numbers of samples (6, 5,000): the values" in read(sweep_dir)


def test_settings_that_are_no_numbers_are_places_of_their_own(sweep_dir):
    description = json.loads((sweep_dir / "sweep.json").read_text())
    for point, name in zip(description["points"], "AABBCC", strict=True):
        point["bindings"] = {"JointCodec.fusion": f"@fusion.{name}()", "train.seed": point["bindings"]["train.seed"]}
    description["axes"] = ["JointCodec.fusion", "train.seed"]
    (sweep_dir / "sweep.json").write_text(json.dumps(description))
    assert re.findall(r"<title>recall: \S+ .*?at (\w)</title>", read(sweep_dir)) == ["A", "B", "C"]


def test_a_point_without_the_swept_number_is_a_level_across_the_panel(sweep_dir):
    description = json.loads((sweep_dir / "sweep.json").read_text())
    for point in description["points"]:
        if point["group"] == "rank=1":
            point["bindings"] = {"JointCodec.representations": "[]"}
            point["group"] = "plain"
    description["axes"] = ["JointCodec.representations", "PCA.rank"]
    (sweep_dir / "sweep.json").write_text(json.dumps(description))
    text = read(sweep_dir)
    assert ">PCA.rank</text>" in text and "<title>plain: 100.5</title>" in text
    values = re.findall(r"<title>rank: ([^<]*)</title>", text)
    assert values[:2] == ["50.75 ± 0.7071 at 2", "10.55 ± 0.7071 at 10"]


def test_a_second_key_gives_curves_of_their_own(sweep_dir):
    description = json.loads((sweep_dir / "sweep.json").read_text())
    for point in description["points"]:
        point["bindings"]["train.scale"] = point["bindings"].pop("train.seed")
        point["group"] = point["name"]
    description["axes"] = ["PCA.rank", "train.scale"]
    (sweep_dir / "sweep.json").write_text(json.dumps(description))
    text = read(sweep_dir)
    assert text.count("</svg>scale = 0</li>") == text.count("</svg>scale = 1</li>") == 2  # of fid and recall


def test_samples_of_all_points_that_kept_them_stand_side_by_side(sweep_dir):
    text = read(sweep_dir)
    strip = re.search(r'<table class="strip">.*?</table>', text)[0]
    assert strip.count("<img ") == 4 * 6 and strip.count("<tr>") == 1 + 4
    assert "3, label 1</th>" in strip and "seed 42" in strip
    assert "The images of a column began with the same noise and have the same label." in text
    sources = re.findall(r'alt="sample (\d) of ([^"]*)"[^>]*height="(\d+)"[^>]*src="([^"]*)"', strip)
    pictures = {(name, number): (int(height), source) for number, name, height, source in sources}
    assert pictures["rank=10,seed=0", "2"] == pictures["rank=10,seed=1", "2"]  # this fixture's are equal
    assert pictures["rank=10,seed=0", "2"] != pictures["rank=10,seed=0", "3"]
    assert pictures["rank=10,seed=0", "2"][0] == 64  # no colours are known
    assert pictures["rank=2,seed=0", "2"][0] == 64 + 1 + 64  # image above its features


def test_other_seeds_and_labels_are_said_to_be_others(sweep_dir, make):
    make.samples(sweep_dir / "points" / "rank=2,seed=0", seed=43)
    text = read(sweep_dir)
    assert "began with the same noise where the seeds are equal." in text
    heads = re.findall(r"<br>seed (\d+)</th>", text)
    assert heads == ["42", "42", "42", "43"]  # equal seeds stand together


def test_samples_that_are_damaged_are_said_and_the_others_shown(sweep_dir):
    (sweep_dir / "points" / "rank=2,seed=0" / "samples" / "part-00000.safetensors").write_bytes(b"short")
    text = read(sweep_dir)
    assert "The samples of rank=2,seed=0 cannot be shown:" in text and text.count('alt="sample ') == 3 * 6


def test_curves_of_all_models_share_a_panel(sweep_dir):
    text = read(sweep_dir)
    for title in ("training loss", "frechet distance domain network of 50, of few samples during training"):
        figure = re.search(f"<figcaption>{title}.*?</figure>", text)[0]
        assert figure.count("<path ") == figure.count("<li>") == 6


def test_failures_are_listed_with_their_errors(sweep_dir):
    text = read(sweep_dir)
    assert "1 of 6 points failed" in text
    assert '<h3>rank=1,seed=1</h3><pre tabindex="0">loss is &lt;nan&gt; at step 3</pre><details>' in text
    assert "Traceback: ...\nValueError: loss is &lt;nan&gt;</pre></details>" in text


def test_a_point_that_has_not_run_is_said_to_be_so(sweep_dir):
    shutil.rmtree(sweep_dir / "points" / "rank=2,seed=0")
    text = read(sweep_dir)
    assert tables(text)[1][1][-3] == "not run yet" and "4 of 6 points are done" in text


def test_a_result_cut_short_is_said_and_the_others_shown(sweep_dir):
    path = sweep_dir / "points" / "rank=2,seed=0" / "result.json"
    path.write_text(path.read_text()[:50])
    text = read(sweep_dir)
    assert "points/rank=2,seed=0/result.json cannot be read; it was cut short or altered" in text
    assert tables(text)[1][1][-3] == "damaged" and "2 of 6 points failed" in text and "10.05" in text


@pytest.mark.parametrize("content", ["{", "[]", '{"points": 3}', '{"points": [3, {"name": "../x"}, {"name": null}]}'])
def test_a_sweep_file_that_cannot_be_used_is_said(sweep_dir, content):
    (sweep_dir / "sweep.json").write_text(content)
    assert "sweep.json names no points." in read(sweep_dir)


def test_a_point_s_folder_outside_of_the_sweep_is_not_read(sweep_dir):
    description = json.loads((sweep_dir / "sweep.json").read_text())
    description["points"][0]["model"] = "../../models/rank=10,seed=0"
    description["points"].append({"name": "../points/rank=10,seed=0"})
    (sweep_dir / "sweep.json").write_text(json.dumps(description))
    results = SweepResults(sweep_dir)
    assert len(results.points) == 6 and results.points[0].model == ""


def test_hostile_names_and_values_stay_text(sweep_dir):
    name = EVIL.replace("/", "-")
    point = sweep_dir / "points" / name
    (sweep_dir / "points" / "rank=2,seed=0").rename(point)
    metric = {"metric": EVIL, "value": EVIL, "spread": EVIL, "better": EVIL}
    good = {"metric": EVIL + "2", "value": 1.0, "better": "lower"}
    (point / "result.json").write_text(json.dumps({"status": EVIL, "metrics": [metric, good, 3], "seconds": {EVIL: 1}}))
    (sweep_dir / "points" / "rank=1,seed=1" / "error.txt").write_text(EVIL)
    description = json.loads((sweep_dir / "sweep.json").read_text())
    description["points"][0] |= {"name": name, "group": EVIL, "bindings": {EVIL: EVIL}}
    description["points"][1] |= {"bindings": "none"}
    description["axes"] = [EVIL, "PCA.rank"]
    (sweep_dir / "sweep.json").write_text(json.dumps(description))
    text = read(sweep_dir)
    assert text.count("<script>") == 1 and "<img src=x" not in text and 'onerror="' not in text
    assert text.count("&lt;script&gt;alert(1)") > 8


def test_many_models_are_told_apart_by_colour_and_dash(tmp_path, make):
    make.sweep(tmp_path)
    description = json.loads((tmp_path / "sweep.json").read_text())
    for i in range(12):
        shutil.copytree(tmp_path / "models" / "rank=2,seed=0", tmp_path / "models" / f"more {i}")
        description["points"].append({"name": f"more {i}", "model": f"more {i}", "bindings": {}})
    (tmp_path / "sweep.json").write_text(json.dumps(description))
    figure = re.search("<figcaption>training loss.*?</figure>", read(tmp_path))[0]
    legend = figure.partition("<ul")[2]
    looks = [(re.search(r"stroke-dasharray=\S+ ?\S*?\"", line) or [""])[0] + re.search(r"c\d", line)[0]
             for line in legend.split("<li>")[1:]]  # fmt: skip
    assert len(looks) == len(set(looks)) == 18


@pytest.mark.parametrize(
    ("text", "number", "words"),
    [
        ("4", 4, "4"),
        ("-0.5", -0.5, "-0.5"),
        ("1e999", None, "1e999"),
        ("True", None, "True"),
        ("'raw'", None, "raw"),
        ("@reducers.PCA()", None, "PCA"),
        ("[@evaluator/encoders.DINOv2(), @fusion.Merged]", None, "[evaluator/DINOv2, Merged]"),
        ("__import__('os')", None, "__import__('os')"),
        (None, None, ""),
    ],
)
def test_gin_texts_are_read_as_numbers_and_words(text, number, words):
    assert gin_number(text) == number and gin_words(text) == words


def test_the_fixture_s_samples_are_what_the_library_reads(sweep_dir):
    from redi.evaluation.samples.stored import load_samples

    samples = load_samples(sweep_dir / "points" / "rank=2,seed=0")
    samples.verify()
    drawn = samples.take(range(2, 5))
    assert drawn.labels.tolist() == [0, 1, 0] and drawn.x.shape == (3, 9, 4, 4) and drawn.images.dtype == torch.uint8
