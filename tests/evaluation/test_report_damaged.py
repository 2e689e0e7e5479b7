"""The page of a run whose files do not fit each other, are of an older version, or were cut short."""

import html
import json
import re

import pytest

from redi.pages.report import report


def read(folder) -> str:
    """The page's text."""
    return html.unescape(re.sub(r"<[^>]*>", " ", report(folder).read_text(encoding="utf-8")))


def test_metrics_of_earlier_samples_are_left_out_with_a_warning(run_dir, caplog, make):
    make.samples(run_dir)
    message = "metrics.json is of earlier samples and left out: run redi.evaluate --run_dir="
    text = read(run_dir)
    assert "12.35" not in text and message in text and message in caplog.text


def test_metrics_of_the_samples_at_hand_are_shown_without_a_warning(run_dir, caplog, make):
    make.metrics(run_dir, digest=make.samples(run_dir))
    text = read(run_dir)
    assert "12.35" in text and "left out" not in text and caplog.text == ""


def test_metrics_of_samples_that_cannot_be_read_are_left_out(run_dir, make):
    make.metrics(run_dir, digest=make.samples(run_dir))
    (run_dir / "samples" / "part-00001.safetensors").write_bytes(b"short")
    text = read(run_dir)
    assert "12.35" not in text and "the samples cannot be read" in text and "has 5 bytes instead of" in text


def test_metrics_of_an_older_version_are_named_so(run_dir, make):
    flat = {name: value for name, value in make.metric.items() if name != "samples"}
    (run_dir / "metrics.json").write_text(json.dumps([flat | {"seed": 0, "samples_sha256": "0123"}]))
    text = read(run_dir)
    assert "metrics.json was written by an older version of redi" in text and "12.35" not in text


@pytest.mark.parametrize("name", ["metrics.json", "audit.json"])
@pytest.mark.parametrize(
    "content", ['[{"metric": "fid', '"text"', "{}", "[1, 2]", "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_file_cut_short_is_said_and_the_rest_is_shown(run_dir, name, content):
    (run_dir / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    text = read(run_dir)
    assert name == "audit.json" and content == "{}" or f"{name} cannot be" in text
    assert "PCA.rank = 8" in text


def test_a_picture_cut_short_is_said(run_dir):
    whole = (run_dir / "samples.png").read_bytes()
    (run_dir / "samples.png").write_bytes(whole[: len(whole) // 2])
    assert "samples.png cannot be shown" in read(run_dir)
    assert (run_dir / "report.html").read_text().count("<img ") == 4
