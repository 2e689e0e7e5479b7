"""The command-line programs as a user meets them: help, mistakes, and what they leave in the run's folder."""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver
from PIL import Image

import redi.__main__
from redi import cache, command_line, components, diff, evaluate, ls, prepare, query, report, run, sample, train
from redi.evaluation.records import read_metrics
from redi.runtime.artefact import write_json
from redi.runtime.atomic import only_process
from redi.runtime.checkpoint import list_checkpoints
from redi.runtime.checksums import sealed, unsealed
from redi.runtime.progress import progress

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ["prepare", "train", "sample", "evaluate", "run", "report"]


def shell(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    """What an interpreter of its own did; the fixture `python` is for programs that import torch."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture
def call(capsys, tmp_path, monkeypatch, redi_log):
    """Runs a program inside this process, in an empty folder -> exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    command_line.FLAGS.mark_as_parsed()

    def call(module, *bindings: str, gin_file=(), run_dir=None, arguments=(), **flags) -> tuple[int, str, str]:
        files = [gin_file] if isinstance(gin_file, str) else list(gin_file)
        run_dir = run_dir and str(run_dir)
        with flagsaver.flagsaver(gin_file=files, gin_bindings=list(bindings), run_dir=run_dir, **flags):
            status = command_line.exit_status(module.main, ["program", *arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def refused(call, tiny_gin, tmp_path):
    """The explanation with which a program refuses to train with these bindings."""

    def refused(*bindings: str, module=train, **flags) -> str:
        flags = {"gin_file": tiny_gin, "run_dir": tmp_path / "run"} | flags
        status, _, errors = call(module, *bindings, **flags)
        assert status == 1 and "Traceback" not in errors
        assert not list_checkpoints(tmp_path / "run") and not (tmp_path / "run" / "log.jsonl").exists()
        return errors.split("error: ")[1].removesuffix("\n(--traceback shows where it was raised)\n")

    return refused


@pytest.fixture(scope="module")
def trained(tiny_gin, tmp_path_factory, python) -> Path:
    """The folder of a run of two steps, made by a process of its own."""
    folder = tmp_path_factory.mktemp("trained")
    flags = [f"--gin_file={tiny_gin}", "--gin_file=more.gin", "--gin_bindings=train.seed = 3", "--run_dir=run"]
    (folder / "more.gin").write_text("PCA.rank = 3\n")
    done = python("-m", "redi.train", *flags, "--gin_bindings=PCA.scale = 'raw'", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def whole_job(tiny_gin, tmp_path_factory) -> Path:
    """The folder of a run that is trained, sampled, evaluated and reported; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    command_line.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(gin_file=[tiny_gin], run_dir=str(folder)):
        assert command_line.exit_status(run.main, ["program"]) == 0
    return folder


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_bytes()) for f in folder.rglob("*") if f.is_file()
    }


# ---- help


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_shows_the_docstring_and_the_flags_without_importing_torch(name, tmp_path):
    code = (
        f"import atexit, runpy, sys; sys.argv = ['redi.{name}', '--help'];"
        "atexit.register(lambda: print('TORCH' if 'torch' in sys.modules else 'LIGHT'));"
        f"runpy.run_module('redi.{name}', run_name='__main__', alter_sys=True)"
    )
    done = shell("-c", code, cwd=tmp_path)
    assert " ".join(importlib.import_module(f"redi.{name}").__doc__.split()) in " ".join(done.stdout.split())
    for flag in ("--gin_file", "--gin_bindings", "--run_dir", "--[no]traceback"):
        assert flag in done.stdout
    assert done.stdout.endswith("LIGHT\n") and done.stderr == "" and done.returncode == 0


def test_help_of_a_console_script_is_that_of_the_module(tmp_path):
    (tmp_path / "redi-train").write_text("import sys\nfrom redi.train import console\nsys.exit(console())\n")
    script, module = shell("redi-train", "--help", cwd=tmp_path), shell("-m", "redi.train", "--help", cwd=tmp_path)
    assert script.stdout.splitlines()[:6] == module.stdout.splitlines()[:6] and "--gin_file" in script.stdout


# ---- mistakes, as processes


def test_an_unknown_binding_ends_the_process_with_status_1_and_an_explanation(tiny_gin, tmp_path):
    flags = f"--gin_file={tiny_gin}", "--gin_bindings=PCA.rnak = 3"
    done = shell("-m", "redi.train", *flags, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: Configurable 'PCA' doesn't have a parameter named 'rnak'")
    assert "did you mean 'rank'?" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_traceback_shows_where_an_error_arose(tiny_gin, tmp_path, python):
    flags = f"--gin_file={tiny_gin}", "--gin_bindings=PCA.rnak = 3", "--traceback"
    done = python("-m", "redi.train", *flags, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr and "core/config.py" in done.stderr
    assert "did you mean 'rank'?" in done.stderr


def test_an_unknown_flag_is_refused_with_the_nearest_one(tmp_path):
    done = shell("-m", "redi.train", "--gin_bindngs=PCA.rank = 3", cwd=tmp_path)
    assert done.returncode == 1 and "Did you mean: gin_bindings" in done.stderr and "Traceback" not in done.stderr


# ---- mistakes, before the first step


@pytest.mark.parametrize("module", [train, prepare, run])
def test_an_unknown_binding_leaves_no_folder(module, refused, tmp_path):
    assert "did you mean 'PCA'?" in refused("PCB.rank = 3", module=module)
    assert not (tmp_path / "run").exists()


def test_a_fusion_where_a_reducer_belongs_is_named(refused):
    assert refused("Representation.reducer = @Merged").startswith(
        "Representation.reducer must be one of reducers (ConvBottleneck, ConvCompressor, GaussianRandomProjection, "
        "Identity, LearnedProjection, PCA, SemVAE, SparseRandomProjection), got Merged, which is of kind fusion. "
        "For example: Representation.reducer = reducers."
    )


def test_a_reducer_where_a_fusion_belongs_is_named(refused):
    assert refused("DiffusionTransformer.fusion = @PCA").startswith(
        "DiffusionTransformer.fusion must be one of fusion (Merged, Separate), got PCA, which is of kind reducers. "
        "For example: DiffusionTransformer.fusion = fusion."
    )


def test_missing_parentheses_are_shown(refused):
    assert refused("Representation.reducer = @PCA").endswith(", in a gin file @reducers.PCA()")
    assert "bind train.codec = @JointCodec()" in refused("train.codec = @JointCodec")


def test_extra_parentheses_are_shown(refused):
    assert "bind it without parentheses, as @Merged" in refused("DiffusionTransformer.fusion = @Merged()")


def test_something_else_than_a_data_set_is_refused(refused):
    assert "train.dataset must be one of datasets (" in refused("train.dataset = @PCA()")


def test_no_codec_and_no_data_set_are_named(refused, tmp_path):
    (tmp_path / "empty.gin").write_text("")
    assert "bind train.codec = @JointCodec()" in refused(gin_file=str(tmp_path / "empty.gin"))
    assert "no data set: bind train.dataset" in refused(gin_file="base.gin")


def test_a_rank_above_the_encoder_width_is_refused_with_both(refused):
    assert refused("PCA.rank = 17") == "PCA.rank = 17 exceeds the encoder width 16 of DomainEncoder"


def test_a_patch_size_that_does_not_divide_the_grid_is_refused_with_both(refused):
    text = refused("DiffusionTransformer.patch_size = 3")
    assert text == "DiffusionTransformer.patch_size = 3: must divide both sides of the latent grid 8x8"


def test_an_argument_that_needs_a_binding_is_named(refused):
    assert refused("train.dataset = @ImageFolder()") == "ImageFolder.path must be bound: there is no default"


def test_a_data_folder_that_is_not_there_is_named(refused):
    text = refused("train.dataset = @ImageFolder()", "ImageFolder.path = '/no/such/folder'")
    assert text.startswith("ImageFolder.path = '/no/such/folder' does not exist (looked for /no/such/folder)")


def test_a_configuration_that_was_refused_can_be_mended_in_the_same_folder(refused, call, tiny_gin, tmp_path):
    refused("PCA.rank = 17")
    status, _, errors = call(prepare, "PCA.rank = 3", gin_file=tiny_gin, run_dir=tmp_path / "run")
    assert status == 0, errors
    assert "PCA.rank = 3" in (tmp_path / "run" / "config.gin").read_text()


def test_a_run_folder_may_be_below_the_home_folder(refused, tiny_gin, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    shutil.copy(tiny_gin, tmp_path / "home" / "mine.gin")
    refused("PCA.rank = 17", gin_file="~/mine.gin", run_dir="~/run")
    assert (tmp_path / "home" / "run" / "config.gin").exists() and not (tmp_path / "~").exists()


def test_what_this_user_may_not_write_to_is_explained_with_what_to_set(refused, monkeypatch):
    def mkdir(*arguments, **options):
        raise PermissionError(13, "Permission denied", "/elsewhere")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert "'/elsewhere'\n  no permission for that path: set --run_dir (results) or one of" in refused()


def test_an_unexpected_argument_is_named(refused, tmp_path):
    assert refused(arguments=["digits.gin"]).startswith("unexpected argument 'digits.gin': only one run folder may be")
    assert not (tmp_path / "run").exists()
    text = refused(module=redi.__main__, arguments=["train"])
    assert text == "unexpected argument 'train': write a program's name with a dot, as in `python -m redi.train`"


def test_an_error_in_a_scope_names_it_in_the_words_of_gin_files(refused):
    scoped = ["evaluate.reference = @held_out/datasets.ImageFolder()", "held_out/ImageFolder.path = '/no/such/folder'"]
    assert refused(*scoped, module=run).endswith("bind the path of the images\n  in @held_out/ImageFolder")


def test_without_gin_file_and_run_folder_the_flags_are_named(refused):
    assert refused(gin_file=(), run_dir=None).startswith("pass a gin file with --gin_file, or the folder of an")


@pytest.mark.parametrize("module", [train, prepare, sample, evaluate, run, report])
def test_an_empty_run_folder_needs_a_gin_file(module, refused, tmp_path):
    assert "run holds no run: pass a gin file with --gin_file" in refused(module=module, gin_file=())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", [sample, evaluate, report])
def test_what_needs_a_trained_model_says_so(module, refused, tmp_path):
    assert "holds no trained model: train one with redi.train --run_dir=" in refused(module=module)
    assert not (tmp_path / "run").exists()


def test_a_class_count_that_the_data_do_not_have_is_refused_and_the_audit_stored(refused, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / "1.png")
    folder = ["train.dataset = @ImageFolder()", f"ImageFolder.path = '{tmp_path / 'data'}'"]
    text = refused(*folder, "ImageFolder.num_classes = 5")
    assert "only 2 of the model's 5 classes have images; 3 have none" in text
    assert "set ImageFolder.num_classes = 2" in text
    record = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert record["num_classes"] == 5 and record["num_classes_present"] == 2 and record["refused"]
    assert "passed" not in record


# ---- run folders


def test_files_and_bindings_may_be_repeated_and_later_ones_win(trained):
    lines = (trained / "config.gin").read_text().splitlines()
    assert {"PCA.rank = 3", "PCA.scale = 'raw'", "train.seed = 3", "train.batch_size = 16"} <= set(lines)


def test_training_leaves_what_took_effect_with_its_defaults(trained):
    lines = (trained / "operative.gin").read_text().splitlines()
    assert {"PCA.rank = 3", "PCA.standardize = False", "train.accumulate = 1", "AdamW.lr = 0.003"} <= set(lines)
    assert not any(line.startswith("evaluate.") for line in lines)


def test_a_folder_with_another_configuration_is_refused_with_both_values_and_left_alone(trained, call):
    before = files_of(trained)
    for module in (train, prepare, run, sample):
        status, _, errors = call(module, "PCA.rank = 9", run_dir=trained)
        assert status == 1 and "  PCA.rank: 3 -> 9\n" in errors and "holds a run with another configuration" in errors
    assert files_of(trained) == before


def test_a_folder_is_enough_to_go_on_with_its_own_configuration(trained, call):
    before = files_of(trained)["config.gin"][1]
    status, _, errors = call(prepare, run_dir=trained)
    assert status == 0, errors
    assert files_of(trained)["config.gin"][1] == before


def test_sampling_with_other_settings_leaves_the_configuration_of_the_run(trained, call):
    before = files_of(trained)["config.gin"]
    status, _, errors = call(sample, "sample.num_images = 12", "ClassifierFree.scale = 3.0", run_dir=trained)
    assert status == 0, errors
    assert files_of(trained)["config.gin"] == before
    record = json.loads((trained / "samples" / "record.json").read_text())
    assert record["num_images"] == 12 and record["guidance"][0]["scale"] == 3.0


REFUSALS = {
    "a label out of range": (sample, ["sample.labels = [3, 10]"], "list of labels in 0 ... 9"),
    "a network that is none": (sample, ["sample.networks = [@PCA()]"], "sample.networks must be one of encoders"),
    "a rule that is none": (sample, ["generate.guidance = @ClassifierFree"], "generate.guidance"),
    "guidance of a group that is not modelled": (
        sample, ["generate.guidance = [@RepresentationGuidance()]", "RepresentationGuidance.without = 'clip'"], "clip"
    ),
    "a scale in letters": (sample, ["ClassifierFree.scale = 'x'"], "ClassifierFree.scale = 'x'"),
    "a sampler that is none": (sample, ["generate.sampler = @PCA()"], "generate.sampler must be one of samplers"),
    "a GPU's precision": (sample, ["generate.precision = 'half'"], "generate.precision = 'half'"),
    "an unknown metric": (evaluate, ["evaluate.metrics = ['fid']"], "evaluate.metrics"),
    "an unknown network": (evaluate, ["evaluate.networks = [@PCA()]"], "evaluate.networks"),
    "images that are not there": (
        evaluate, ["evaluate.reference = @r/ImageFolder()", "r/ImageFolder.path = '/no/such'"], "/no/such"
    ),
    "a question that is none": (query, ["query.labels = 'all'"], "query.labels = 'all'"),
    "a model of other channels": (sample, ["PCA.rank = 9"], "another configuration"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused_leaves_the_folder_as_it_was(name, whole_job, call):
    module, bindings, message = REFUSALS[name]
    before, names = files_of(whole_job), sorted(os.listdir(whole_job))
    status, _, errors = call(module, *bindings, run_dir=whole_job)
    assert status == 1 and message in errors, errors
    assert files_of(whole_job) == before and sorted(os.listdir(whole_job)) == names


@pytest.mark.parametrize("name", ["a label out of range", "a question that is none", "an unknown metric"])
def test_what_is_refused_makes_no_folder_for_results(name, whole_job, call, tmp_path):
    module, bindings, message = REFUSALS[name]
    status, _, errors = call(module, *bindings, run_dir=tmp_path / "elsewhere", trained_dir=str(whole_job))
    assert status == 1 and message in errors and not (tmp_path / "elsewhere").exists()


# ---- dry runs


def test_a_dry_run_of_training_audits_and_foretells_and_writes_nothing(call, tiny_gin, tmp_path):
    for module in (train, run):
        status, text, errors = call(module, gin_file=tiny_gin, run_dir=tmp_path / "run", dry_run=True)
        assert status == 0, errors
        assert "\nsteps per epoch   11.19 of batch 16\n" in text
        assert "\njoint state       channels image 1, domain 2, on 8 x 8\n" in text
        assert "\ntraining          2 steps of batch 16, 0.179 epochs\n" in text and " FLOPs per step" in text
        assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_what_training_would_refuse(refused, tmp_path):
    assert "PCA.rank = 17 exceeds the encoder width 16" in refused("PCA.rank = 17", dry_run=True)
    assert not (tmp_path / "run").exists()


def test_dry_runs_of_what_comes_after_training_leave_the_folder_as_it_was(whole_job, call):
    before = files_of(whole_job)
    status, text, errors = call(sample, "sample.seeds = (0, 1)", run_dir=whole_job, dry_run=True)
    assert status == 0 and text.startswith(f"40 images from step 2 of {whole_job}, with EulerMaruyama, "), errors
    status, text, errors = call(evaluate, run_dir=whole_job, dry_run=True)
    assert status == 0 and text == f"would measure 20 samples in {whole_job}/samples\n", errors
    assert files_of(whole_job) == before


def test_a_program_without_a_dry_run_refuses_the_flag(refused):
    assert refused(module=report, dry_run=True).startswith("only prepare, train, run, sample,")


def test_the_folder_may_be_an_argument_without_a_flag(whole_job, call):
    for module in (sample, report):
        status, _, errors = call(module, arguments=[str(whole_job)])
        assert status == 0 and str(whole_job) in errors


def test_quiet_programs_tell_results_alone(whole_job, call, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "")  # noted, so that what the program sets is undone
    assert call(report, run_dir=whole_job, quiet=True) == (0, "", "")
    assert progress(total=1).disable and progress(total=1, disable=False).disable


def test_evaluating_before_sampling_says_so(trained, call):
    shutil.rmtree(trained / "samples", ignore_errors=True)
    status, _, errors = call(evaluate, run_dir=trained)
    assert status == 1 and "holds no samples: run redi.sample --run_dir=" in errors


def test_a_binding_without_effect_is_warned_of(call, tiny_gin, tmp_path):
    status, _, errors = call(prepare, "evalutor/DomainEncoder.seed = 2", "rank = 3", gin_file=tiny_gin)
    assert status == 0, errors
    assert " W unused bindings, which no component in use refers to: evalutor/DomainEncoder.seed, rank\n" in errors


def test_the_run_folder_is_named_after_the_first_gin_file(call, tiny_gin, tmp_path):
    assert call(prepare, gin_file=[tiny_gin])[0] == 0
    assert (tmp_path / "runs" / "tiny" / "config.gin").exists()


def test_the_whole_job_leaves_its_results_and_all_that_took_effect(call, tiny_gin, tmp_path):
    status, _, errors = call(run, gin_file=tiny_gin, run_dir=tmp_path / "run")
    assert status == 0, errors
    assert {"metrics.json", "report.html", "samples.png"} <= set(os.listdir(tmp_path / "run"))
    lines = (tmp_path / "run" / "operative.gin").read_text().splitlines()
    assert {"train.accumulate = 1", "sample.weights = 'ema'", "evaluate.max_images = None", "PCA.rank = 2"} <= set(
        lines
    )


def test_samples_drawn_by_hand_are_drawn_anew_by_the_whole_job(call, tiny_gin, tmp_path):
    folder = tmp_path / "run"

    def sampler() -> str:
        return json.loads((folder / "samples" / "record.json").read_text())["sampler"]["name"]

    assert call(run, gin_file=tiny_gin, run_dir=folder)[0] == 0
    before = files_of(folder)
    status, _, errors = call(run, run_dir=folder)
    assert status == 0 and "--- samples and metrics are up to date" in errors
    assert files_of(folder)["samples/part-00000.safetensors"] == before["samples/part-00000.safetensors"]

    assert call(sample, "generate.sampler = @samplers.Euler()", "Euler.num_evaluations = 3", run_dir=folder)[0] == 0
    assert sampler() == "Euler"
    status, _, errors = call(report, run_dir=folder)
    assert status == 0 and "metrics.json holds metrics of earlier samples" in errors
    assert '<section id="metrics">' not in (folder / "report.html").read_text()

    status, _, errors = call(run, run_dir=folder)
    assert status == 0 and "--- sample\n" in errors and "earlier samples" not in errors
    assert sampler() == "EulerMaruyama"
    assert files_of(folder)["samples/part-00000.safetensors"][1] == before["samples/part-00000.safetensors"][1]
    assert '<section id="metrics">' in (folder / "report.html").read_text()


def test_an_evaluation_by_hand_is_made_anew_by_the_whole_job(call, tiny_gin, tmp_path):
    folder = tmp_path / "run"
    assert call(run, gin_file=tiny_gin, run_dir=folder)[0] == 0
    before = (folder / "metrics.json").read_bytes()
    assert call(evaluate, "evaluate.max_images = 15", run_dir=folder)[0] == 0
    assert (folder / "metrics.json").read_bytes() != before
    assert call(run, run_dir=folder)[0] == 0
    assert (folder / "metrics.json").read_bytes() == before


# ---- what is there


def test_a_page_needs_a_trained_run(call, tiny_gin, tmp_path):
    from redi import explore

    pytest.importorskip("flask", reason="flask is not installed: pip install 'redi-diffusion[test]'")
    status, _, errors = call(explore, run_dir=tmp_path / "none", port=0)
    assert status == 1 and "holds no run" in errors
    status, _, errors = call(explore, gin_file=tiny_gin, run_dir=tmp_path / "none", port=0)
    assert status == 1 and "holds no trained model: train one with redi.train" in errors


def test_all_programs_are_listed_with_what_they_do(tmp_path):
    lines = shell("-m", "redi", cwd=tmp_path).stdout.splitlines()
    assert "redi.train        Train a model, or resume training from the newest checkpoint." in lines
    programs = {line.split(".")[1].split()[0] for line in lines if line.startswith("redi.")}
    assert programs == {path.stem for path in (ROOT / "redi").glob("[!_]*.py")} - {"command_line"}


@pytest.mark.parametrize("name", ["redi", "redi.train"])
def test_programs_tell_the_version(name, tmp_path):
    done = shell("-m", name, "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"redi {redi.__version__}\n", "")


def test_runs_are_listed_with_what_became_of_them(whole_job, call, tmp_path):
    shutil.copytree(whole_job, tmp_path / "runs" / "whole")
    for name, more in (("started", ""), ("longer", "train.num_steps = %STEPS\nSTEPS = 7000\n")):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "config.gin").write_text(f"import my_lab\n{more}")
    shutil.copytree(whole_job / "checkpoints", tmp_path / "runs" / "longer" / "checkpoints")
    point = shutil.copytree(whole_job, tmp_path / "runs" / "point", ignore=shutil.ignore_patterns("checkpoints"))
    metrics = [unsealed(one, "") for one in read_metrics(point / "metrics.json")]
    metrics[0]["samples"]["samples_sha256"] = 64 * "0"
    write_json(point / "metrics.json", list(map(sealed, metrics)))
    with only_process(tmp_path / "runs" / "longer"):
        during = call(ls, arguments=["runs"])[1]
    status, text, errors = call(ls, arguments=["runs"])
    assert status == 0, errors
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert rows["runs/whole"][:5] == ["finished", "2", "of", "2", "frechet_distance_domain_network"]
    assert rows["runs/point"][:5] == ["finished", "2", "of", "2", "outdated"]
    assert rows["runs/started"][:6] == ["not", "trained", "0", "of", "400,000", "-"]
    assert rows["runs/longer"][:5] == ["stopped", "2", "of", "7,000", "-"]
    assert "runs/longer   running" in during and call(ls)[1] == text


def test_two_runs_are_compared_by_their_bindings(whole_job, call, tmp_path):
    text = (whole_job / "config.gin").read_text().replace("PCA.rank = 2", "PCA.rank = 3")
    (tmp_path / "config.gin").write_text(f"import redi as redi7\n{text}")
    status, text, _ = call(diff, arguments=[str(whole_job), str(tmp_path)])
    assert status == 0 and [line.split() for line in text.splitlines()[1:]] == [["PCA.rank", "2", "3"]]
    assert call(diff, arguments=[str(whole_job), str(whole_job)])[1] == "the configurations are equal\n"
    assert "redi.diff needs two run folders" in call(diff, arguments=[str(whole_job)])[2]
    assert "unexpected argument 'a': only 2 run folders may be passed" in call(diff, arguments=["a", "b", "c"])[2]


def test_what_no_run_uses_is_deleted_from_the_cache_and_only_on_demand(whole_job, call, tmp_path):
    here = tmp_path / "cache"
    shutil.copytree(os.environ["REDI_CACHE"], here)
    used = next((here / "encoders").glob("DomainEncoder-*"))
    shutil.copytree(used, here / "encoders" / "DomainEncoder-other")
    record = here / "encoders" / "DomainEncoder-other" / "record.json"
    stored = json.loads(record.read_text())
    stored["provenance"]["weights_sha256"] = 64 * "0"
    record.write_text(json.dumps(stored))
    flags = {"arguments": [str(whole_job)], "cache_dir": str(here)}
    kinds = {line.split("/")[0] for line in call(cache, **flags)[1].splitlines() if line.endswith(" run")}
    assert kinds == {"encoded", "encoders", "reducers", "references"}
    assert record.exists() and f"are used by no run in {whole_job}: delete them with" in call(cache, **flags)[1]
    status, text, errors = call(cache, **flags, delete=True)
    assert status == 0 and "encoders/DomainEncoder-other" in text and not record.exists(), errors
    assert kinds == {line.split("/")[0] for line in call(cache, **flags)[1].splitlines() if line.endswith(" run")}


# ---- audits


def test_an_audit_that_allowed_missing_classes_does_not_hold_without(call, tiny_gin, tmp_path):
    flags = {"gin_file": tiny_gin, "run_dir": tmp_path / "run"}
    more = "Digits.num_classes = 11"
    assert call(prepare, more, "audit.allow_missing_classes = True", **flags)[0] == 0
    status, _, errors = call(prepare, more, **flags)
    assert status == 1 and "only 10 of the model's 11 classes have images" in errors


def test_the_same_audit_is_made_once_and_for_another_batch_size_again(call, tiny_gin, tmp_path):
    flags = {"gin_file": tiny_gin, "run_dir": tmp_path / "run"}
    for batch_size, printed in ((16, True), (16, False), (32, True)):
        status, text, errors = call(prepare, f"train.batch_size = {batch_size}", **flags)
        assert status == 0, errors
        assert (f"of batch {batch_size}" in text) is printed
        record = json.loads((tmp_path / "run" / "audit.json").read_text())
        assert (record["batch_size"], record["steps_per_epoch"]) == (batch_size, round(179 / batch_size, 2))


# ---- plug-ins in the current folder

PLUGIN = """
from redi.guidance import register
from redi.guidance.classifier_free import ClassifierFree


@register
class Twice(ClassifierFree):
    \"\"\"The classifier-free rule under another name.\"\"\"
"""


@pytest.fixture
def plugin(tmp_path) -> Path:
    """A folder with a plug-in, a gin file that imports it, and console scripts in a folder beside."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "twice_plugin.py").write_text(PLUGIN)
    (work / "x.gin").write_text("import twice_plugin\n")
    for name in ("components", "prepare"):
        script = f"import sys\nfrom redi.{name} import console\nsys.exit(console())\n"
        (tmp_path / f"redi-{name}").write_text(script)  # the first of sys.path is then this folder
    return work


@pytest.mark.parametrize("command", [("-m", "redi.components"), ("../redi-components",)])
def test_the_table_lists_what_a_gin_file_imports_from_the_current_folder(plugin, command, python):
    done = python(*command, "--gin_file=x.gin", cwd=plugin)
    assert done.returncode == 0, done.stderr
    assert "  @guidance.Twice(" in done.stdout
    assert "      The classifier-free rule under another name." in done.stdout.splitlines()


def test_a_console_script_finds_a_plug_in_in_the_current_folder(plugin, tiny_gin, python):
    flags = "--gin_file=x.gin", f"--gin_file={tiny_gin}", "--gin_bindings=generate.guidance = [@guidance.Twice()]"
    done = python("../redi-prepare", *flags, "--run_dir=run", cwd=plugin)
    assert done.returncode == 0, done.stderr
    assert "import twice_plugin" in (plugin / "run" / "config.gin").read_text().splitlines()


def test_an_unknown_flag_of_the_table_is_refused(plugin):
    done = shell("-m", "redi.components", "--gin_fil=x.gin", cwd=plugin)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert "Did you mean: gin_file" in done.stderr


def test_a_module_that_is_not_there_is_named_by_the_table(call, tmp_path):
    (tmp_path / "x.gin").write_text("import twise_plugin\n")
    status, _, errors = call(components, gin_file="x.gin")
    assert status == 1 and "twise_plugin" in errors and "Traceback" not in errors


LOADS_OPENMP = """
import ctypes, os
from redi import command_line
assert os.environ.get("GOMP_SPINCOUNT") == {before!r}  # importing redi decides nothing
def main():
    "Load GNU OpenMP, which prints its settings."
    ctypes.CDLL({library!r})
command_line.program(main)
"""


@pytest.mark.parametrize(
    ("user", "spin_count"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_waiting_threads_of_a_program_spin_briefly_unless_the_user_decides(user, spin_count, tmp_path):
    library = Path(importlib.util.find_spec("torch").origin).parent / "lib" / "libgomp.so.1"
    if not library.exists():
        pytest.skip("this build of torch brings no GNU OpenMP")
    code = LOADS_OPENMP.format(before=user.get("GOMP_SPINCOUNT"), library=str(library))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT)} | user
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"GOMP_SPINCOUNT = '{spin_count}'\n" in done.stderr
