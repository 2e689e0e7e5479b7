"""A sweep from the command line, with real points of two steps: shared training, resumption, failures."""

import io
import json
import logging
import shlex
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from absl.testing import flagsaver

from redi import command_line, sample, sweep
from redi.core import config
from redi.runtime.checkpoint import list_checkpoints

GUIDANCE, RANK = "scale=2.0", "rank=3"
POINTS = "{'ClassifierFree.scale': 1.0}, {'ClassifierFree.scale': 2.0}, {'PCA.rank': 3}"
FAILING = f"sweep.points = [{{'PCA.rank': 900}}, {POINTS}]"


@pytest.fixture(scope="module")
def call():
    """Runs the program in this process, as the shell would -> exit status."""
    command_line.FLAGS.mark_as_parsed()
    log = logging.getLogger("redi")
    before = log.handlers[:], log.propagate, log.level

    def call(run_dir: Path, *bindings: str, gin_file: str | None = None, point: str | None = None) -> int:
        files = [str(gin_file)] if gin_file else []
        with flagsaver.flagsaver(gin_file=files, gin_bindings=list(bindings), run_dir=str(run_dir), point=point):
            return command_line.exit_status(sweep.main, ["program"])

    yield call
    log.handlers[:], log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.fixture(scope="module")
def sweep_file(tiny_gin, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("file") / "three.gin"
    settings = "sweep.threads = 1\nevaluate.representation = None\nevaluator/DomainEncoder.num_steps = 10\n"
    path.write_text(f"include '{tiny_gin}'\nsweep.points = [{POINTS}]\n{settings}")
    return path


@pytest.fixture(scope="module")
def folder(call, sweep_file, tmp_path_factory) -> Path:
    """A finished sweep: points run one by one, as another scheduler would, then gathered."""
    run_dir = tmp_path_factory.mktemp("sweep") / "three"
    for point in ("scale=1.0", GUIDANCE, RANK):
        assert call(run_dir, gin_file=sweep_file, point=point) == 0
    assert call(run_dir, gin_file=sweep_file) == 0
    return run_dir


def result(folder: Path, point: str) -> dict:
    return json.loads((folder / "points" / point / "result.json").read_text())


def times(folder: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.glob(pattern)) if path.is_file()}


def test_what_a_sweep_leaves(folder):
    assert {path.name for path in folder.iterdir()} >= {
        "config.gin", "sweep.json", "models", "points", "results.csv", "results.md", "results.png", "report.html",
    }  # fmt: skip
    for point in ("scale=1.0", GUIDANCE, RANK):
        names = {path.name for path in (folder / "points" / point).iterdir()}
        assert names >= {"config.gin", "samples", "samples.png", "metrics.json", "report.html", "result.json"}
        assert not names & {"error.txt", "checkpoints"}


def test_points_that_differ_in_sampling_share_one_training(folder):
    plan = {point["name"]: point["model"] for point in json.loads((folder / "sweep.json").read_text())["points"]}
    assert plan == {"scale=1.0": "model", GUIDANCE: "model", RANK: RANK}
    assert {path.name for path in (folder / "models").iterdir()} == {"model", RANK}
    assert [path.name for path in list_checkpoints(folder / "models" / "model")] == ["step_00000002"]
    trained_here = [result(folder, point)["seconds"]["train"] is not None for point in plan]
    assert trained_here == [True, False, True]


def test_every_point_is_sampled_as_it_says_from_the_model_that_it_names(folder):
    records = {p: json.loads((folder / "points" / p / "samples" / "record.json").read_text()) for p in (GUIDANCE, RANK)}
    assert records[GUIDANCE]["guidance"][0]["scale"] == 2.0 and records[RANK]["guidance"][0]["scale"] == 1.5
    trained = config.statements((folder / "models" / RANK / "config.gin").read_text())
    assert trained["PCA.rank"] == "3" and not [key for key in trained if key.startswith("sweep.")]


def test_a_result_holds_the_metrics_of_its_point(folder):
    found = result(folder, GUIDANCE)
    metrics = json.loads((folder / "points" / GUIDANCE / "metrics.json").read_text())
    assert metrics and [m["metric"] for m in found["metrics"]] == [m["metric"] for m in metrics]
    assert [m["value"] for m in found["metrics"]] == [m["value"] for m in metrics]
    assert found["bindings"] == {"ClassifierFree.scale": "2.0"} and found["group"] == GUIDANCE
    table = (folder / "results.md").read_text()
    assert f"| {GUIDANCE} | " in table and all(m["metric"] in table for m in metrics) and "Missing" not in table


def test_a_finished_sweep_is_not_done_again(folder, call, sweep_file):
    done = times(folder, "points/**/*") | times(folder, "models/**/*")
    assert call(folder, gin_file=sweep_file) == 0
    assert call(folder) == 0  # from its own config.gin
    assert times(folder, "points/**/*") | times(folder, "models/**/*") == done


@pytest.fixture(scope="module")
def resumed(folder, call, sweep_file) -> dict:
    """The sweep once more, with a point that fails and a result cut short: each in a process of its own."""
    path = folder / "points" / GUIDANCE / "result.json"
    state = {"result": result(folder, GUIDANCE)}
    patterns = ("models/**/*.safetensors", f"points/{RANK}/**/*")
    state["before"] = [times(folder, pattern) for pattern in patterns]
    path.write_text(path.read_text()[:40])
    with redirect_stderr(io.StringIO()) as errors:
        state["status"] = call(folder, FAILING, "sweep.parallel = 2", gin_file=sweep_file)
    state["errors"] = errors.getvalue()
    state["after"] = [times(folder, pattern) for pattern in patterns]
    return state


def test_a_result_cut_short_is_made_again_and_nothing_else(folder, resumed):
    assert "result.json is truncated or altered" in resumed["errors"]
    times_apart = {"seconds": None, "sha256_of_the_rest": None}
    assert result(folder, GUIDANCE) | times_apart == resumed["result"] | times_apart
    assert resumed["after"] == resumed["before"]
    assert "--- report" in (folder / "points" / GUIDANCE / "output.txt").read_text()


def test_a_point_that_fails_keeps_its_error_and_the_status_is_1(folder, resumed):
    assert resumed["status"] == 1
    assert "error: 1 of 4 points failed: rank=900; see error.txt in" in resumed["errors"]
    error = (folder / "points" / "rank=900" / "error.txt").read_text()
    message, _, trace = error.partition("\n\n")
    assert message == "PCA.rank = 900 exceeds the encoder width 16 of DomainEncoder" and trace.startswith("Traceback")
    table = (folder / "results.md").read_text()
    assert "- rank=900: PCA.rank = 900 exceeds the encoder width 16" in table and f"| {RANK} | " in table


def test_printed_commands_are_of_the_points_that_are_left(folder, resumed, call, sweep_file, capsys):
    assert call(folder, FAILING, "sweep.launcher = 'print'", gin_file=sweep_file) == 0
    command = shlex.split(capsys.readouterr().out)
    words = [sys.executable, "-m", "redi.sweep", f"--run_dir={folder}", "--point=rank=900"]
    assert command == ["OMP_NUM_THREADS=1", *words]


def test_other_bindings_in_the_same_folder_are_refused_before_anything_starts(folder, call, sweep_file, capsys):
    before = times(folder, "**/*")
    assert call(folder, "EulerMaruyama.num_evaluations = 7", gin_file=sweep_file) == 1
    errors = capsys.readouterr().err
    assert "scale=1.0 holds another configuration:\n  EulerMaruyama.num_evaluations: 2 -> 7" in errors
    assert times(folder, "**/*") == before


def test_printed_commands_start_nothing(call, sweep_file, tmp_path, capsys):
    assert call(tmp_path / "new", "sweep.launcher = 'print'", gin_file=sweep_file) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" --point=")[2] for line in lines] == ["scale=1.0", GUIDANCE, RANK]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"config.gin", "sweep.json"}


def test_a_saved_sweep_file_holds_the_bindings_of_presets(call, sweep_file, tmp_path, capsys):
    (tmp_path / "preset.gin").write_text("PCA.rank = 3  # components\n")
    points = f"sweep.points = [{{}}, {{'gin_file': '{tmp_path / 'preset.gin'}'}}]"
    printing = "sweep.launcher = 'print'"
    assert call(tmp_path / "new", points, printing, gin_file=sweep_file) == 0
    (tmp_path / "preset.gin").unlink()
    assert call(tmp_path / "new") == 0  # prints again, from the saved file
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" --point=")[2] for line in lines] == ["base", "rank=3"] * 2


@pytest.mark.parametrize(
    ("bindings", "point", "message"),
    [
        (["sweep.points = []"], None, "the sweep is empty"),
        (["sweep.points = [{'PCA.rank': 2}, {'PCA.rank': 2}]"], None, "2 points of the sweep are called 'rank=2'"),
        (["sweep.points = [{'PCA.rnak': 2}]"], None, "did you mean 'rank'"),
        (["sweep.launcher = 'slrum'"], None, "must be one of local, torchrun, slurm, print; did you mean 'slurm'?"),
        (["sweep.baseline = 'scale=3.0'"], None, "one of scale=1.0; scale=2.0; rank=3; did you mean 'scale=2.0'?"),
        (["sweep.points = [{'gin_file': 3}]"], None, "must be the name of a gin file, or a list of names"),
        (["sweep.points = [{'gin_file': 'digit.gin'}]"], None, "no gin file digit.gin"),
        (["sweep.parallel = 0"], None, "sweep.parallel = 0 must be an integer of at least 1"),
        (["sweep.processes = 2"], None, "sweep.processes = 2 needs sweep.launcher = 'torchrun'"),
        ([], "scale=2", "the sweep has no point 'scale=2'; did you mean 'scale=2.0'?"),
    ],
)
def test_mistakes_are_explained_and_nothing_starts(call, sweep_file, tmp_path, capsys, bindings, point, message):
    assert call(tmp_path / "new", *bindings, gin_file=sweep_file, point=point) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_without_a_sweep_needs_a_file(call, tmp_path, capsys):
    assert call(tmp_path / "nothing") == 1
    assert "holds no sweep: pass a sweep file with --gin_file" in capsys.readouterr().err


# ---- the model of one folder, the samples in another


def sampled(run_dir: Path, trained_dir: Path, *bindings: str, module=sample) -> int:
    flags = {"gin_file": [], "gin_bindings": list(bindings), "run_dir": str(run_dir), "trained_dir": str(trained_dir)}
    with flagsaver.flagsaver(**flags):
        return command_line.exit_status(module.main, ["program"])


def test_a_trained_model_is_sampled_into_another_folder(folder, call, tmp_path):
    trained_dir = folder / "models" / RANK
    before = times(trained_dir, "**/*")
    assert sampled(tmp_path / "more", trained_dir, "sample.num_images = 5") == 0
    record = json.loads((tmp_path / "more" / "samples" / "record.json").read_text())
    assert record["num_images"] == 5 and times(trained_dir, "**/*") == before
    assert config.statements((tmp_path / "more" / "config.gin").read_text())["sample.num_images"] == "5"


def test_the_configuration_of_a_trained_model_stays_as_it_is(folder, call, tmp_path):
    trained_dir = folder / "models" / RANK
    before = (trained_dir / "config.gin").read_bytes()
    with flagsaver.flagsaver(
        gin_file=[], gin_bindings=["sample.num_images = 7"], run_dir=None, trained_dir=str(trained_dir)
    ):
        command_line.configure(tmp_path / "more", trains=True)  # as redi.run does
    assert (trained_dir / "config.gin").read_bytes() == before
    assert config.statements((tmp_path / "more" / "config.gin").read_text())["sample.num_images"] == "7"


def test_a_sweep_file_without_redi_sweep_is_pointed_out(sweep_file, call, tmp_path, caplog):
    with flagsaver.flagsaver(gin_file=[str(sweep_file)], gin_bindings=[], run_dir=None, trained_dir=None):
        command_line.configure(tmp_path / "run", trains=True)
    assert "this is a sweep file" in caplog.text


def test_bindings_that_the_trained_model_does_not_have_are_refused(folder, call, tmp_path, capsys):
    assert sampled(tmp_path / "more", folder / "models" / RANK, "PCA.rank = 2") == 1
    errors = capsys.readouterr().err
    assert "holds a run with another configuration:\n  PCA.rank: 3 -> 2\nChoose another --trained_dir" in errors
    assert not (tmp_path / "more").exists()


def test_a_sweep_has_no_trained_model_but_its_own(folder, call, tmp_path, capsys):
    assert sampled(tmp_path / "more", folder / "models" / RANK, module=sweep) == 1
    assert "--trained_dir does not apply to sweeps" in capsys.readouterr().err
