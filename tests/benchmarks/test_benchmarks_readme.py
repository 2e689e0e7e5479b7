"""The tables of benchmarks/README.md are those of the JSON files."""

import json

import pytest

RESULT = {
    "benchmark": "sampling",
    "command": "python benchmarks/sampling.py",
    "environment": {
        "processor": "some processor", "cores": 2, "threads": 2, "memory_gib": 23.5, "versions": {"torch": "2.11.0"},
        "commit": "abc1234", "date": "2026-01-02T03:04:05+00:00",
    },
    "settings": {"batch_size": 8},
    "rows": [{"variant": "plain loop", "seconds_per_image": 0.125}],
    "notes": ["a note"],
}  # fmt: skip
TEXT = "before\n<!-- results of sampling -->\nold\n<!-- end of sampling -->\nafter\n"


def test_the_readme_shows_what_is_in_the_results():
    from readme import README, generated

    text = README.read_text()
    assert generated(text) == text, "run: python benchmarks/readme.py"


def test_every_benchmark_has_a_place_in_the_readme():
    from readme import MARKED, README

    marked = {match[2] for match in MARKED.finditer(README.read_text())}
    results = {path.name.split(".")[0] for path in (README.parent / "results").glob("*.json")}
    assert results <= marked
    assert {"train_step", "sampling", "attention", "data_loading", "pca", "startup", "quality"} <= marked


def test_a_result_becomes_a_table_and_a_missing_one_its_command(tmp_path):
    from readme import generated

    (tmp_path / "sampling.cpu.json").write_text(json.dumps(RESULT))
    text = generated(TEXT, tmp_path)
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "old" not in text
    for part in ("some processor", "torch 2.11.0", "abc1234", "2026-01-02", "| plain loop | 0.125 |", "- a note"):
        assert part in text
    assert "`python benchmarks/sampling.py --device cuda && python benchmarks/readme.py`" in text
    assert generated(text, tmp_path) == text


def test_the_parts_of_gpu_sh_have_tables_too(tmp_path):
    from readme import generated

    marked = "<!-- results of gpu -->\n<!-- end of gpu -->\n"
    assert "`bash benchmarks/gpu.sh benchmarks/results/gpu`" in generated(marked, tmp_path)
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "train_xl2.json").write_text(json.dumps(RESULT))
    (tmp_path / "gpu" / "train_xl2.status.json").write_text('{"part": "train_xl2", "exit_status": 0}')
    text = generated(marked, tmp_path)
    assert text.count("### ") == 1 and "### train_xl2" in text and "| plain loop | 0.125 |" in text


@pytest.mark.parametrize("changed", [0.25, 0.126])
def test_another_number_makes_another_text(tmp_path, changed):
    from readme import generated

    path = tmp_path / "sampling.cpu.json"
    path.write_text(json.dumps(RESULT))
    text = generated(TEXT, tmp_path)
    path.write_text(json.dumps(RESULT | {"rows": [{"variant": "plain loop", "seconds_per_image": changed}]}))
    assert generated(text, tmp_path) != text
