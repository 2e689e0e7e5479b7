"""The page of a run: one complete file that makes no requests."""

import json
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from redi.pages.report import report

VOID = {"meta", "img", "br"}
EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Collects tags, sources and text; every tag that needs a closing tag must have one."""

    def __init__(self, source):
        super().__init__()
        self.source, self.sources, self.links, self.tags, self.attributes = source, [], [], [], set()
        self.text, self.open = "", []
        self.feed(source.replace("<wbr>", ""))
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.attributes |= attributes.keys()
        if "src" in attributes:
            self.sources.append(attributes["src"])
        self.links += [attributes[name] for name in ("href", "srcset", "data", "action") if name in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open = self.open[: -(tag not in VOID) or None]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data + " "


def read(folder) -> Page:
    return Page(report(folder).read_text(encoding="utf-8"))


def test_the_report_is_one_file_in_the_run_folder_that_loads_nothing(run_dir):
    before = {path.name for path in run_dir.iterdir()}
    page = read(run_dir)
    assert {path.name for path in run_dir.iterdir()} - before == {"report.html"}
    assert page.open == [] and "style" not in page.attributes
    assert len(page.sources) == 1 + 4  # samples, four previews
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert all(link.startswith("#") for link in page.links)  # shapes of the plots
    assert page.source.count("url(") == page.source.count("url(#") and "@import" not in page.source
    assert "default-src &#39;none&#39;; img-src data:;" in page.source and "unsafe" not in page.source


def test_metrics_are_shown_with_what_they_are_read_by(run_dir):
    text = read(run_dir).text
    shown = ("frechet_distance_domain_network", "12.35 ± 0.49", "lower", "standard error 0.3111", "floor 1.5")
    shown += (
        "extrapolated to infinitely many samples 11.75",
        "ratio to the floor 8.23",
        "6 × 2 seeds",
        "359 of Digits",
    )
    shown += ("Digits, split held_out", "only 6 samples for 48 features", "are not FIDs")
    assert [part for part in shown if part not in text] == []


def test_how_a_metric_was_measured_is_told_in_full(run_dir, make):
    text = read(run_dir).text
    shown = ("EulerMaruyama, 50 function evaluations, guidance ClassifierFree 1.5, EMA weights of step 1,500, seed 42",)
    shown += ("labels equal", "uint8_rule round half to even", "decoder autoencoder Pixels, channels 1")
    shown += ("weights_sha256 " + make.drawn["weights_sha256"], "sha256 " + make.metric["network"]["sha256"])
    shown += ("sha256 " + make.metric["reference"]["sha256"], "torch 2.11.0", "per_seed 12, 12.6912")
    shown += ("sample standard deviation over seeds", "network_evaluations_per_image 100")
    assert [part for part in shown if part not in text] == []


def test_what_metrics_have_in_common_is_shown_once(run_dir, make):
    others = [{"metric": "recall", "network": {"encoder": "Other"}}, {"metric": "precision"}]
    make.metrics(run_dir, {}, *others)
    text = read(run_dir).text
    for once in (
        "Settings of the evaluation",
        "Samples: EulerMaruyama, 50",
        "decoder autoencoder Pixels",
        "torch 2.11.0",
    ):
        assert text.count(once) == 1
    assert "Feature network of frechet_distance_domain_network, precision encoder DomainEncoder" in text
    assert "Feature network of recall encoder Other" in text
    assert text.count("only 6 samples for 48 features") == 1 + 3 + 3  # the warning; per metric; the full metrics.json


def test_classes_are_named_as_the_audit_names_them(run_dir, make):
    (run_dir / "audit.json").write_text(json.dumps({"class_names": ["cat", "dog"]}))
    make.metrics(run_dir, {"per_class": {"1": 0.25, "2": 0.5}})
    assert "per_class dog 0.25, 2 0.5" in read(run_dir).text


def test_a_run_is_said_in_a_line_and_its_samples_come_first(run_dir, make):
    session = {"command": "python -m redi.run --gin_file=a.gin", "began": "2026-11-30T10:00:00+00:00", "processes": 1}
    session |= {"device": "CPU, 2 threads", "first_step": 0, "num_steps": 1000, "seconds": 250.0}
    sessions = [session, session | {"first_step": 1000, "num_steps": 200, "seconds": 50.0}]
    record = {"model": "DiT", "num_parameters": 1_580_000, "num_trainable": 1_500_000, "image_size": 64}
    record |= {"channels": {"image": 4, "dinov2": 8}, "reducers": {"dinov2": "PCA"}, "sessions": sessions}
    (run_dir / "training.json").write_text(json.dumps(record))
    page = read(run_dir)
    line = "DiT, 1.58 M parameters · 64 x 64 pixels · dinov2: PCA, 8 channels · 1,200 steps · "
    assert line + "frechet_distance_domain_network 12.35 ± 0.49" in page.text
    assert "Started 2026-11-30 · CPU, 2 threads · 5 min 0 s of training, 0.25 s per step" in page.text
    assert "python -m redi.run --gin_file=a.gin" in page.text and "num_trainable 1500000" in page.text
    order = [page.source.index(f"<h2>{heading}</h2>") for heading in ("Samples", "Metrics", "Training", "Details")]
    assert order == sorted(order)
    (run_dir / "training.json").write_text('{"sessions": [{}]}')
    assert "training.json cannot be shown" in read(run_dir).text


def test_the_signal_to_noise_ratio_of_every_group_has_a_panel(run_dir):
    curves = {"s": [0.1, 0.5, 0.9], "snr": {"image": [None, -5.4, 16.5], "dinov2": [-16.5, 5.4, None]}}
    session = {"command": "a", "began": "2026-11-30", "device": "CPU", "first_step": 0, "num_steps": 1, "seconds": 1.0}
    record = {"model": "DiT", "num_parameters": 1, "image_size": 64, "channels": {}, "reducers": {}}
    record |= {"sessions": [session], "noise_schedule": curves}
    (run_dir / "training.json").write_text(json.dumps(record))
    page = read(run_dir)
    assert "signal-to-noise ratio of each group, dB" in page.text and "shared time s" in page.text
    assert "own time t of each group" not in page.text  # without a clock
    clock = curves | {"t": {"image": [0.1, 0.4, 0.9], "dinov2": [0.1, 0.5, 0.9]}}
    (run_dir / "training.json").write_text(json.dumps(record | {"noise_schedule": clock}))
    lines = [{"step": step, "loss": 2.0, "kinetic": 3.6, "mean_t/image": 0.5 - step / 1000} for step in (10, 20)]
    (run_dir / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = read(run_dir)
    titles = ("own time t of each group", "mean own time of each group", "kinetic energy of the clock")
    assert all(title in page.text for title in titles) and "mean_t/" not in page.text
    (run_dir / "training.json").write_text(json.dumps(record | {"noise_schedule": {"s": [0.1], "snr": 5}}))
    assert "training.json cannot be shown" in read(run_dir).text


def test_a_single_seed_is_said_to_tell_no_spread(run_dir, make):
    make.metrics(run_dir, {"per_seed": [12.3], "spread": None})
    text = read(run_dir).text
    assert "unknown for a single seed" in text and "12.35 ±" not in text


def test_what_an_entry_has_beyond_the_known_fields_is_shown_too(run_dir, make):
    make.metrics(
        run_dir, {"space": "encoder", "per_token": [[1, 2], [3, 4]], "network": None, "per_class": {"3": 0.25}}
    )
    text = read(run_dir).text
    assert "space encoder" in text and "per_token 2 rows, see the full record" in text and "per_class 3 0.25" in text


def test_the_full_record_of_the_metrics_is_there(run_dir):
    text = read(run_dir).text
    start = text.index("Full metrics.json") + len("Full metrics.json")
    assert json.JSONDecoder().raw_decode(text[start:].lstrip())[0] == json.loads((run_dir / "metrics.json").read_text())


def test_the_line_about_samples_names_the_weak_network(run_dir, make):
    make.metrics(run_dir, {"metric": "fid_clean"}, networks={"runs/small step 400": {}})
    assert "weak network: runs/small step 400, EMA" in read(run_dir).text


def test_a_published_metric_without_guidance_is_called_so(run_dir, make):
    make.metrics(run_dir, {"metric": "fid_clean"}, guidance=[])
    text = read(run_dir).text
    assert "are not FIDs" not in text and "guidance none, EMA" in text


def test_losses_monitor_and_speed_have_panels_of_their_own(run_dir):
    source = read(run_dir).source
    for title in ("losses", "frechet_distance_domain_network_of_50, on few samples during training",
                  "training speed, images per second", "gradient norm"):  # fmt: skip
        assert f"<figcaption>{title}</figcaption>" in source
    assert source.count('role="img"') == 4


@pytest.mark.parametrize("lines", ["5\n{}\n", '{"step": 1, "loss": 2.0}\n{"step": 2, "lo'])
def test_a_log_without_a_curve_has_no_panel(run_dir, lines):
    (run_dir / "log.jsonl").write_text(lines)
    assert "Training" not in read(run_dir).text


def test_configurations_are_shown_as_text(run_dir):
    text = read(run_dir).text
    assert "PCA.rank = 8" in text and "EMA.decay = 0.995" in text
    assert "<b>https://example.org</b>" in text  # escaped: text, not a tag


def test_the_title_is_the_folder_s_name_or_the_one_that_is_passed(run_dir):
    assert "<title>my &lt;run&gt; &amp; more</title>" in read(run_dir).source
    report(run_dir, title="bad \udcff name")  # not valid text
    assert "<title>bad \\udcff name</title>" in (run_dir / "report.html").read_text()


def test_an_empty_folder_says_so(tmp_path):
    page = read(tmp_path)
    assert page.sources == []
    assert "holds no results yet" in page.text and "Metrics" not in page.text


def test_hostile_names_and_values_stay_text(tmp_path, make):
    folder = tmp_path / "<script>alert(0)<" / EVIL.replace("/", "-")
    folder.mkdir(parents=True)
    hostile = {"metric": EVIL, "value": EVIL, "better": EVIL, "note": EVIL, "warnings": [EVIL], "floor": EVIL}
    hostile |= {"per_class": {EVIL: EVIL}, "network": EVIL, "reference": {EVIL: EVIL, "dataset": EVIL}, EVIL: [EVIL]}
    make.metrics(folder, hostile, sampler={"name": EVIL}, guidance=[{"name": EVIL}, EVIL], labels=[EVIL], seeds=EVIL)
    (folder / "log.jsonl").write_text(
        "".join(json.dumps({"step": s, EVIL: s, "loss": s, "monitor/" + EVIL: s}) + "\n" for s in (1, 2))
    )
    (folder / "config.gin").write_text(EVIL)
    (folder / "audit.json").write_text(json.dumps({"dataset": EVIL}))
    page = read(folder)
    assert page.open == [] and page.sources == [] and "onerror" not in page.attributes
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert page.text.count("<script>alert(1)") > 20  # it is all there, as text


def test_further_pictures_are_shown_where_they_are(run_dir):
    Image.new("RGB", (20, 10)).save(run_dir / "representation.png")
    Image.new("RGB", (20, 10)).save(run_dir / "queries.png")
    page = read(run_dir)
    assert len(page.sources) == 7 and "Generated representation" in page.text and "Queries" in page.text


def test_the_audit_is_shown(run_dir):
    from redi.data.audit import audit
    from redi.data.datasets.digits import Digits

    (run_dir / "audit.json").write_text(json.dumps(audit(Digits(), batch_size=16)[1]))
    assert "10 of the model's 10 have images" in read(run_dir).text


# ---- points of sweeps


def test_the_page_of_a_point_has_the_curves_of_its_model(sweep_dir):
    point = sweep_dir / "points" / "rank=2,seed=0"
    text = read(point).text
    assert "losses" in text and "trained in rank=2,seed=0" in text
    shutil.rmtree(sweep_dir / "models")
    assert "losses" not in read(point).text


@pytest.mark.parametrize("sweep", ["{", "[]", '{"points": [{"name": "rank=2,seed=0", "model": "../../elsewhere"}]}'])
def test_a_point_whose_sweep_does_not_tell_its_model_has_no_curves(sweep_dir, sweep):
    (sweep_dir / "sweep.json").write_text(sweep)
    assert "losses" not in read(sweep_dir / "points" / "rank=2,seed=0").text


# ---- files that do not fit each other, are of an older version, or were cut short


def test_metrics_of_earlier_samples_are_left_out_with_a_warning(run_dir, caplog, make):
    digest = make.samples(run_dir)
    message = "metrics.json holds metrics of earlier samples: run redi.evaluate --run_dir="
    text = read(run_dir).text
    assert "12.35" not in text and message in text and message in caplog.text
    caplog.clear()
    make.metrics(run_dir, digest=digest)
    text = read(run_dir).text
    assert "12.35" in text and "earlier samples" not in text and caplog.text == ""


def test_metrics_of_samples_that_cannot_be_read_are_left_out(run_dir, make):
    make.metrics(run_dir, digest=make.samples(run_dir))
    (run_dir / "samples" / "part-00001.safetensors").write_bytes(b"short")
    text = read(run_dir).text
    assert "12.35" not in text and "The metrics are not shown" in text and "has 5 bytes instead of" in text


def test_metrics_of_an_older_version_are_named_so(run_dir, make):
    flat = {name: value for name, value in make.metric.items() if name != "samples"}
    (run_dir / "metrics.json").write_text(json.dumps([flat | {"seed": 0, "samples_sha256": "0123"}]))
    text = read(run_dir).text
    assert "metrics.json was written by an older version of redi" in text and "12.35" not in text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'[{"metric": "fid', "cannot be read"),
        ("\ud800".encode("utf-8", "surrogatepass"), "cannot be read"),
        (b'"text"', "is not a list of metrics"),
        (b"{}", "is not a list of metrics"),
        (b"[1, 2]", "is not a list of metrics"),
    ],
)
def test_a_file_cut_short_is_said_and_the_rest_is_shown(run_dir, content, problem):
    for name in ("metrics.json", "audit.json"):
        (run_dir / name).write_bytes(content)
    text = read(run_dir).text
    assert f"metrics.json {problem}" in text and "audit.json cannot be shown" in text
    assert "PCA.rank = 8" in text


def test_a_picture_cut_short_is_said(run_dir):
    whole = (run_dir / "samples.png").read_bytes()
    (run_dir / "samples.png").write_bytes(whole[: len(whole) // 2])
    page = read(run_dir)
    assert "samples.png cannot be shown" in page.text and len(page.sources) == 4
