"""`python -m redi.report FOLDER`."""

import logging
import sys

import pytest
from absl.testing import flagsaver

from redi import report, train

PLAN = '{"axes": ["PCA.rank"], "points": [{"name": "rank=2", "model": "m", "bindings": {"PCA.rank": "2"}}]}'


@pytest.fixture
def sweep_dir(tmp_path):
    """A sweep with one point that has not run."""
    folder = tmp_path / "sweep"
    (folder / "points" / "rank=2").mkdir(parents=True)
    (folder / "sweep.json").write_text(PLAN)
    return folder


@pytest.fixture
def call(capfd, tmp_path, monkeypatch):
    """Runs a program inside this process, in an empty folder -> exit status, stderr."""
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("redi")
    before = log.handlers[:], log.propagate, log.level

    def call(module, *arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
            module.console()
        return end.value.code, capfd.readouterr().err

    yield call
    log.handlers[:], log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.mark.parametrize("form", ["{}", "--run_dir={}"])
def test_a_sweep_s_page_is_rebuilt_from_its_folder_alone(call, sweep_dir, form):
    assert call(report, form.format(sweep_dir))[0] == 0
    assert "A sweep of redi over PCA.rank: 0 of 1 points" in (sweep_dir / "report.html").read_text()


def test_a_point_s_page_is_rebuilt_without_a_checkpoint_of_its_own(call, sweep_dir):
    point = sweep_dir / "points" / "rank=2"
    assert call(report, point)[0] == 0
    assert "trained in m" in (point / "report.html").read_text()


def test_a_folder_without_a_run_is_refused(call, tmp_path):
    status, errors = call(report, tmp_path / "nothing")
    assert status == 1 and "nothing holds no run" in errors and not (tmp_path / "nothing").exists()


def test_one_folder_at_a_time(call, sweep_dir):
    for arguments in (("one", "two"), ("one", "two", "three"), ("one", f"--run_dir={sweep_dir}")):
        status, errors = call(report, *arguments)
        assert status == 1 and "unexpected argument 'one'" in errors


def test_other_programs_take_no_sweep_for_a_run(call, sweep_dir):
    status, errors = call(train, sweep_dir)
    assert status == 1 and "holds no run" in errors
