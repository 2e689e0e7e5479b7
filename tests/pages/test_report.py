"""The page of a run: one file that says everything and asks for nothing."""

import json
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from redi.pages.report import report

VOID = {"meta", "img", "br"}
EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Collects tags, sources and text; every tag that needs an end must have one."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.links, self.tags, self.attributes = [], [], [], []
        self.text, self.open = "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.attributes += attributes
        if "src" in attributes:
            self.sources.append(attributes["src"])
        self.links += [attributes[name] for name in ("href", "srcset", "data", "action") if name in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data + " "


def read(folder) -> Page:
    return Page(report(folder).read_text(encoding="utf-8"))


def test_the_report_lies_in_the_run_folder_with_nothing_beside_it(run_dir):
    before = {path.name for path in run_dir.iterdir()}
    assert report(run_dir) == run_dir / "report.html"
    assert {path.name for path in run_dir.iterdir()} - before == {"report.html"}


def test_every_tag_is_closed(run_dir):
    assert read(run_dir).open == []


def test_nothing_is_loaded_from_elsewhere(run_dir):
    page, text = read(run_dir), (run_dir / "report.html").read_text()
    assert page.links == []
    assert len(page.sources) == 1 + 4  # samples, four previews
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "url(" not in text and "@import" not in text
    assert "default-src &#x27;none&#x27;; img-src data:;" in text and "unsafe" not in text


def test_metrics_are_shown_with_what_they_are_read_by(run_dir):
    text = read(run_dir).text
    shown = ("frechet distance domain network", "12.35 ± 0.49", "lower", "standard error 0.3111", "floor 1.5")
    shown += ("extrapolated to infinitely many samples 11.75", "times the floor 8.23", "6 × 2 seeds", "359 of Digits")
    shown += ("only 6 samples for 48 features", "are no FIDs")
    for part in shown:
        assert part in text, part


def test_how_a_metric_was_measured_is_told_in_full(run_dir, make):
    text = " ".join(read(run_dir).text.split())
    shown = (
        "EulerMaruyama, 50 function evaluations, guidance ClassifierFree 1.5, ema weights of step 1,500, seeds 42",
    )
    shown += ("labels equal", "uint8 rule round half to even", "decoder autoencoder Pixels, channels 1")
    shown += ("weights sha256 " + make.drawn["weights_sha256"], "sha256 " + make.metric["network"]["sha256"])
    shown += ("sha256 " + make.metric["reference"]["sha256"], "torch 2.11.0", "per seed 12, 12.6912")
    shown += ("the sample standard deviation over seeds", "network evaluations per image 100")
    for part in shown:
        assert part in text, part


def test_a_single_seed_is_said_to_tell_no_spread(run_dir, make):
    make.metrics(run_dir, {"per_seed": [12.3], "spread": None})
    text = read(run_dir).text
    assert "not known: one seed" in text and "±  is" not in text and "12.35 ±" not in text


def test_what_an_entry_has_beyond_the_known_fields_is_shown_too(run_dir, make):
    make.metrics(
        run_dir, {"space": "encoder", "per_token": [[1, 2], [3, 4]], "network": None, "per_class": {"3": 0.25}}
    )
    text = " ".join(read(run_dir).text.split())
    assert "space encoder" in text and "per token 2 rows, see the record in full" in text and "class 3 0.25" in text


def test_the_full_record_of_the_metrics_is_there(run_dir):
    text = read(run_dir).text
    start = text.index("[\n")
    assert json.JSONDecoder().raw_decode(text[start:])[0] == json.loads((run_dir / "metrics.json").read_text())


def test_a_published_metric_has_no_word_about_own_networks(run_dir, make):
    make.metrics(run_dir, {"metric": "fid_clean"})
    assert "are no FIDs" not in read(run_dir).text


def test_unguided_samples_are_called_so(run_dir, make):
    make.metrics(run_dir, guidance=[])
    assert "guidance none" in read(run_dir).text


def test_losses_monitor_and_speed_have_panels_of_their_own(run_dir):
    text = report(run_dir).read_text()
    for title in ("losses, mean squared error", "frechet distance domain network of 50, of few samples during training",
                  "training speed, images per second", "gradient norm"):  # fmt: skip
        assert f"<figcaption>{title}</figcaption>" in text
    assert text.count('role="img"') == 4


@pytest.mark.parametrize(
    "lines", ['{"step": 1, "loss": 2.0}\n', "5\n{}\n", '{"step": 1, "loss": 2.0}\n{"step": 2, "lo']
)
def test_a_log_without_a_curve_has_no_panel(run_dir, lines):
    (run_dir / "log.jsonl").write_text(lines)
    assert "Training" not in read(run_dir).text


def test_a_loss_that_is_no_number_leaves_a_gap(run_dir):
    values = [1.0, 2.0, float("nan"), 2.0, 1.0]
    lines = [json.dumps({"step": i, "loss": value}) for i, value in enumerate(values)]
    (run_dir / "log.jsonl").write_text("\n".join(lines))
    path = report(run_dir).read_text().split('<path d="')[1].split('"')[0]
    assert path.count("M") == 2 and path.count("L") == 2


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


def test_an_empty_folder_says_so(tmp_path):
    page = read(tmp_path)
    assert page.sources == []
    assert "holds nothing to show yet" in page.text and "Metrics" not in page.text


def test_hostile_names_and_values_stay_text(tmp_path, make):
    folder = tmp_path / "<script>alert(0)<" / EVIL.replace("/", "-")
    folder.mkdir(parents=True)
    hostile = {"metric": EVIL, "value": EVIL, "better": EVIL, "note": EVIL, "warnings": [EVIL], "floor": EVIL}
    hostile |= {"per_class": {EVIL: EVIL}, "network": EVIL, "reference": {EVIL: EVIL, "dataset": EVIL}, EVIL: [EVIL]}
    make.metrics(folder, hostile, sampler={"name": EVIL}, guidance=[{"name": EVIL}, EVIL], labels=[EVIL], seeds=EVIL)
    (folder / "log.jsonl").write_text(
        "".join(json.dumps({"step": s, EVIL: s, "monitor/" + EVIL: s}) + "\n" for s in (1, 2))
    )
    (folder / "config.gin").write_text(EVIL)
    (folder / "audit.json").write_text(json.dumps({"dataset": EVIL}))
    page = read(folder)
    assert page.open == [] and page.sources == [] and "onerror" not in page.attributes
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert page.text.count("<script>alert(1)") > 20  # it is all there, as text


def test_a_name_that_is_no_text_can_be_written(run_dir):
    assert "\\udcff" in report(run_dir, title="bad \udcff name").read_text()


def test_further_pictures_are_shown_where_they_are(run_dir):
    Image.new("RGB", (20, 10)).save(run_dir / "representation.png")
    Image.new("RGB", (20, 10)).save(run_dir / "queries.png")
    page = read(run_dir)
    assert len(page.sources) == 7 and "Generated representation" in page.text and "Queries" in page.text


def test_the_audit_is_shown(run_dir):
    from redi.data.audit import audit
    from redi.data.datasets.digits import Digits

    (run_dir / "audit.json").write_text(json.dumps(audit(Digits(), batch_size=16)[1]))
    assert "10 present of 10 the model is built for" in read(run_dir).text


# ---- points of sweeps


def test_the_page_of_a_point_has_the_curves_of_its_model(sweep_dir):
    point = sweep_dir / "points" / "rank=2,seed=0"
    text = read(point).text
    assert "losses, mean squared error" in text and "Its model was trained in rank=2,seed=0" in text
    shutil.rmtree(sweep_dir / "models")
    assert "losses" not in read(point).text


@pytest.mark.parametrize("sweep", ["{", "[]", '{"points": [{"name": "rank=2,seed=0", "model": "../../elsewhere"}]}'])
def test_a_point_whose_sweep_does_not_tell_its_model_has_no_curves(sweep_dir, sweep):
    (sweep_dir / "sweep.json").write_text(sweep)
    assert "losses" not in read(sweep_dir / "points" / "rank=2,seed=0").text
