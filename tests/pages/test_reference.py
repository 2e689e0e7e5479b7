"""Reference curves: the script that writes them, reading them, and a run drawn against one."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from redi.core import config
from redi.core.configurables import import_all
from redi.pages.reference import read_curve, reference_panels
from redi.pages.report import report
from redi.runs.experiment import Experiment
from redi.runs.stages import report_stage, train_stage
from redi.runtime.checkpoint import Retention, save_checkpoint

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "curves"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.jsonl"))


@pytest.fixture
def make(monkeypatch):
    """Calls experiments/curves/make.py as a program."""
    specification = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def make(*arguments) -> None:
        monkeypatch.setattr(sys, "argv", ["make.py", *map(str, arguments)])
        script.main()

    return make


def write_run(folder: Path, seed: int, *, steps=range(10, 81, 10), rate=0.003) -> Path:
    """A finished run; the loss of `image` is the step plus the seed, that of `z` is half of it."""
    record = {"model_arguments": {"channels": {"image": 1, "z": 2}}, "seed": seed}
    save_checkpoint(folder, max(steps), {"ema": {"w": torch.zeros(1)}}, record, keep=Retention(1))
    lines = [{"step": 1, "monitor/fd": 9.0}]
    lines += [{"step": step, "loss": 9.0, "image": step + seed, "z": (step + seed) / 2} for step in steps]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.gin").write_text(f"AdamW.lr = {rate}\ntrain.seed = {seed}\n")
    (folder / "training.json").write_text(json.dumps({"sessions": [{"device": "CPU, 2 threads"}]}))
    return folder


def write_curve(path: Path, *, preset="digits", losses=(1.0, 0.5)) -> Path:
    lines = [{"preset": preset, "seeds": [0, 1]}]
    lines += [{"step": i + 1, "image": [loss, loss + 0.25]} for i, loss in enumerate(losses)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_loss_of_the_file_is_the_mean_over_the_steps_since_the_line_before(make, tmp_path):
    runs = [write_run(tmp_path / str(seed), seed, steps=[*range(10, 91, 10), 95]) for seed in (3, 5)]
    make(*runs, "--preset", "digits", "--every", "40", "--folder", tmp_path)
    about, *lines = map(json.loads, (tmp_path / "digits.jsonl").read_text().splitlines())
    assert (about["preset"], about["seeds"], about["machine"]) == ("digits", [3, 5], ["CPU, 2 threads"])
    assert lines == [{"step": 40, "image": [28, 30], "z": [14, 15]}, {"step": 80, "image": [68, 70], "z": [34, 35]}]
    assert read_curve(tmp_path / "digits.jsonl").losses == {"image": [(28, 68), (30, 70)], "z": [(14, 34), (15, 35)]}


@pytest.mark.parametrize(
    ("second", "every", "message"),
    [({"seed": 0}, 40, "the seeds [0, 0]: must differ"), ({"rate": 1.0}, 40, "not in AdamW.lr"),
     ({}, 25, "must be a multiple of train.log_every = 10"), ({"steps": range(10, 41, 10)}, 40, "end at the steps"),
     ({"steps": [10, 30, 40]}, 40, "must have every loss up to step 40")],
)  # fmt: skip
def test_runs_that_do_not_belong_together_are_refused(make, tmp_path, capsys, second, every, message):
    runs = [write_run(tmp_path / "a", 0), write_run(tmp_path / "b", **{"seed": 1} | second)]
    with pytest.raises(SystemExit):
        make(*runs, "--preset", "digits", "--every", every, "--folder", tmp_path)
    assert message in capsys.readouterr().err and not (tmp_path / "digits.jsonl").exists()


def test_a_run_is_drawn_on_top_of_every_seed_of_the_reference_in_the_groups_that_both_have(tmp_path):
    curve = read_curve(write_curve(tmp_path / "curve.jsonl"))
    entries = [{"step": 1, "image": 1.5, "z": 1.0}, {"step": 2, "image": 0.75, "z": 1.0}, {"step": 3, "image": 0.7}]
    [panel] = reference_panels(curve, entries)
    assert [(one.label, one.y, one.thin) for one in panel.curves] == [
        ("digits, 2 seeds", [1.0, 0.5], True), ("digits, 2 seeds", [1.25, 0.75], True),
        ("this run", [1.5, 0.75, 0.7], False)]  # fmt: skip
    assert panel.title == "loss of image: 0.75 at step 2, reference 0.5 to 0.75"


def test_the_legend_says_if_the_reference_was_trained_on_other_images(tmp_path):
    curve = read_curve(write_curve(tmp_path / "curve.jsonl"))._replace(images="a")
    entries = [{"step": 1, "image": 1.5}, {"step": 2, "image": 0.75}]
    labels = [reference_panels(curve, entries, images)[0].curves[0].label for images in ("a", "b", None)]
    assert labels == ["digits, 2 seeds", "digits, 2 seeds, other images", "digits, 2 seeds"]


def test_the_page_shows_the_reference_and_says_if_it_has_nothing_in_common(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "image": 1.0}\n{"step": 2, "image": 0.5}\n')
    page = report(tmp_path, curve=write_curve(tmp_path / "curve.jsonl", preset="<b>")).read_text()
    assert "<figcaption>loss of image: 0.5 at step 2, reference 0.5 to 0.75</figcaption>" in page
    assert "&lt;b&gt;, 2 seeds" in page and "not drawn" not in page
    (tmp_path / "log.jsonl").unlink()
    page = report(tmp_path, curve=tmp_path / "curve.jsonl").read_text()
    assert "This run is not drawn against the reference curve of &lt;b&gt;" in page


def test_a_curve_is_found_in_the_current_folder(tmp_path, monkeypatch):
    write_curve(tmp_path / "curve.jsonl")
    monkeypatch.chdir(tmp_path)
    assert read_curve("curve.jsonl").steps == [1, 2]


ABOUT, LINE = '{"preset": "a", "seeds": [0, 1]}', '{"step": 1, "image": [1, 2]}'


@pytest.mark.parametrize(
    "content",
    ["", ABOUT, "5\n" + LINE, f"{ABOUT}\n5", f"{ABOUT}\n{LINE[:-3]}", f'{ABOUT}\n{{"step": 1, "image": [1]}}',
     f'{ABOUT}\n{LINE}\n{{"step": 2, "z": [1, 2]}}', f'{ABOUT}\n{{"step": 1, "image": [1, null]}}',
     f'{{"preset": "a"}}\n{LINE}', "\udcff"],
)  # fmt: skip
def test_a_malformed_curve_is_an_error_before_the_page_is_written(run_dir, tmp_path, content):
    path = tmp_path / "curve.jsonl"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"report.curve = .*must be a complete reference curve .*or write the file by"):
        report(run_dir, curve=path)
    assert not (run_dir / "report.html").exists()


def test_a_sweep_has_no_reference_curve(sweep_dir, tmp_path):
    with pytest.raises(ValueError, match="must be None for a sweep"):
        report(sweep_dir, curve=write_curve(tmp_path / "curve.jsonl"))


def test_a_missing_curve_is_an_error_before_training_and_before_the_report(tmp_path):
    import_all()
    config.parse(["digits.gin"], ["report.curve = 'digit.jsonl'"])
    experiment = Experiment(tmp_path / "report", tmp_path / "run")
    for stage in (lambda: train_stage(experiment, evaluates=True), lambda: report_stage(experiment)):
        with pytest.raises(ValueError, match="report.curve = 'digit.jsonl': must be a file in the current folder"):
            stage()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", PRESETS)
def test_a_shipped_curve_has_three_seeds_and_its_preset_binds_it(preset):
    import_all()
    config.parse([f"{preset}.gin"], [])
    curve = read_curve(config.bound("report.curve"))
    assert curve.preset == preset and all(len(seeds) == 3 for seeds in curve.losses.values())
