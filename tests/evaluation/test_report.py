"""The report: one file that says everything and asks for nothing."""

import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from redi.evaluation.report import report

VOID = {"meta", "img", "br"}
OPTIONAL_END = {"html", "p", "tr", "td", "th"}


class Page(HTMLParser):
    """Collects tags, sources and text; every tag that needs an end must have one."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.links, self.text, self.open, self.titles = [], [], "", [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "src" in attributes:
            self.sources.append(attributes["src"])
        self.links += [attributes[name] for name in ("href", "srcset", "data", "action") if name in attributes]
        self.links += ["script"] if tag == "script" else []
        if tag not in VOID | OPTIONAL_END:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in OPTIONAL_END:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


METRICS = [
    {
        "metric": "frechet_distance_domain_network",
        "value": 12.3456,
        "floor": 1.5,
        "times_floor": 8.23,
        "num_samples": 77,
        "num_reference": 359,
        "seed": 42,
        "sampler": {"name": "EulerMaruyama", "num_evaluations": 50},
        "guidance": [{"name": "ClassifierFree", "scale": 1.5, "groups": ["image"]}],
        "function_evaluations": 50,
        "weights": "ema",
        "checkpoint_step": 1500,
        "labels": "equal",
        "network": {"encoder": "DomainEncoder", "width": 48, "seed": 1},
    }
]


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "my <run> & more"
    (folder / "previews").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    lines = [{"step": s, "loss": 2.0 / s, "image": 1.0 / s, "images_per_second": 9.0} for s in (1, 2, 3)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Image.new("RGB", (20, 10), "red").save(folder / "samples.png")
    for step in range(1, 8):
        Image.new("RGB", (20, 10), "blue").save(folder / "previews" / f"step_{step:08d}.png")
    (folder / "config.gin").write_text("# see <b>https://example.org</b>\nPCA.rank = 8\n")
    (folder / "operative.gin").write_text("EMA.decay = 0.995\n")
    return folder


def read(run_dir):
    return Page(report(run_dir).read_text(encoding="utf-8"))


def test_the_report_lies_in_the_run_folder(run_dir):
    assert report(run_dir) == run_dir / "report.html"


def test_every_tag_is_closed(run_dir):
    assert read(run_dir).open == []


def test_nothing_is_loaded_from_elsewhere(run_dir):
    page = read(run_dir)
    assert page.links == []
    assert len(page.sources) == 1 + 1 + 4  # samples, curves, four previews
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "url(" not in (run_dir / "report.html").read_text()
    assert "@import" not in (run_dir / "report.html").read_text()


def test_metrics_are_shown_with_how_their_samples_were_drawn(run_dir):
    text = read(run_dir).text
    shown = ("frechet distance domain network", "12.35", "floor 1.5", "times floor 8.23", "EulerMaruyama", "seed 42")
    shown += ("50 function evaluations", "ClassifierFree 1.5", "ema weights of step 1500", "labels equal", "not FIDs")
    for part in shown:
        assert part in text


def test_the_full_record_of_the_metrics_is_there(run_dir):
    text = read(run_dir).text
    start = text.index("[\n")
    assert json.JSONDecoder().raw_decode(text[start:])[0] == METRICS


def test_configurations_are_shown_as_text(run_dir):
    page = read(run_dir)
    assert "PCA.rank = 8" in page.text
    assert "EMA.decay = 0.995" in page.text
    assert "<b>https://example.org</b>" in page.text  # escaped: text, not a tag


def test_the_folder_s_name_is_the_title_and_is_escaped(run_dir):
    assert "<title>my &lt;run&gt; &amp; more</title>" in report(run_dir).read_text()


def test_a_title_can_be_given(run_dir):
    report(run_dir, title="Digits")
    assert "<title>Digits</title>" in (run_dir / "report.html").read_text()


def test_an_empty_folder_gives_an_empty_report(tmp_path):
    page = read(tmp_path)
    assert page.sources == []
    assert "Metrics" not in page.text


def test_unguided_samples_are_called_so(run_dir):
    (run_dir / "metrics.json").write_text(json.dumps([METRICS[0] | {"guidance": []}]))
    assert "guidance none" in read(run_dir).text


def test_a_log_with_one_entry_has_no_curve(run_dir):
    (run_dir / "log.jsonl").write_text('{"step": 1, "loss": 2.0, "images_per_second": 9.0}\n')
    assert len(read(run_dir).sources) == 5


def samples(run_dir, digest):
    (run_dir / "metrics.json").write_text(json.dumps([METRICS[0] | {"samples_sha256": "0123"}]))
    (run_dir / "samples").mkdir()
    (run_dir / "samples" / "record.json").write_text(json.dumps({"files": {"samples.safetensors": {"sha256": digest}}}))


def test_metrics_of_earlier_samples_are_left_out_with_a_warning(run_dir, caplog):
    samples(run_dir, "4567")
    assert "12.35" not in read(run_dir).text
    assert "metrics.json is of earlier samples and left out: run redi.evaluate --run_dir=" in caplog.text


def test_metrics_of_the_samples_at_hand_are_shown_without_a_warning(run_dir, caplog):
    samples(run_dir, "0123")
    assert "12.35" in read(run_dir).text and caplog.text == ""
