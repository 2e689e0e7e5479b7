"""`python -m redi.report FOLDER`."""

import logging

import pytest
from absl.testing import flagsaver

from redi import command_line, report, train


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Runs a program inside this process, in an empty folder -> exit status, stderr."""
    monkeypatch.chdir(tmp_path)
    command_line.FLAGS.mark_as_parsed()
    log = logging.getLogger("redi")
    before = log.handlers[:], log.propagate, log.level

    def call(module, *arguments, run_dir=None) -> tuple[int, str]:
        with flagsaver.flagsaver(gin_file=[], gin_bindings=[], run_dir=run_dir, trained_dir=None, traceback=False):
            status = command_line.exit_status(module.main, ["program", *map(str, arguments)])
        return status, capsys.readouterr().err

    yield call
    log.handlers[:], log.propagate = before[:2]
    log.setLevel(before[2])


def test_a_sweep_s_page_is_rebuilt_from_its_folder_alone(call, sweep_dir):
    assert call(report, sweep_dir)[0] == 0
    assert "A sweep of redi over PCA.rank" in (sweep_dir / "report.html").read_text()


def test_the_folder_can_be_given_as_a_flag_too(call, sweep_dir):
    assert call(report, run_dir=str(sweep_dir))[0] == 0
    assert (sweep_dir / "report.html").exists()


def test_a_point_s_page_is_rebuilt_without_a_checkpoint_of_its_own(call, sweep_dir):
    point = sweep_dir / "points" / "rank=2,seed=0"
    assert call(report, point)[0] == 0
    assert "Its model was trained in rank=2,seed=0" in (point / "report.html").read_text()


def test_a_folder_without_a_run_is_refused(call, tmp_path):
    status, errors = call(report, tmp_path / "nothing")
    assert status == 1 and "nothing holds no run" in errors and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("arguments", [("one", "two"), ("one", "two", "three")])
def test_one_folder_at_a_time(call, arguments):
    status, errors = call(report, *arguments)
    assert status == 1 and f"unexpected argument {arguments[0]!r}" in errors


def test_a_folder_and_another_one_in_the_flag_are_refused(call, sweep_dir):
    status, errors = call(report, "elsewhere", run_dir=str(sweep_dir))
    assert status == 1 and "unexpected argument 'elsewhere'" in errors


def test_other_programs_still_refuse_an_argument(call, sweep_dir):
    status, errors = call(train, sweep_dir)
    assert status == 1 and "unexpected argument" in errors
