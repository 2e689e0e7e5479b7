import json
import math
import os
import random
import resource
import signal
import time
from contextlib import closing

import pytest
import torch

from redi.runtime.checkpoint import list_checkpoints
from redi.runtime.log import AsyncScalars, LogWindow, RunLog, read_log


def lines(folder) -> list[dict]:
    """Read the log without redi: every line is standard JSON and ends with a newline."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (folder / "log.jsonl").read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_resumed_log_goes_on_after_its_step(tmp_path):
    with closing(RunLog(tmp_path, 0)) as log:
        for step in (1, 2, 3):
            log.scalars(step, loss=1 / step)
    with closing(RunLog(tmp_path, 2)) as log:
        log.scalars(3, loss=7.0)
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 7.0}]
    assert read_log(tmp_path) == lines(tmp_path)


def test_a_tilde_is_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    assert read_log("~") == [{"step": 1}] and len(list_checkpoints("~")) == 1


def test_what_is_not_finite_is_null(tmp_path):
    with closing(RunLog(tmp_path, 0)) as log:
        log.scalars(1, loss=float("nan"), norm=float("inf"), low=-float("inf"), rate=None, fine=2)
    assert lines(tmp_path) == [{"step": 1, "loss": None, "norm": None, "low": None, "rate": None, "fine": 2}]


@pytest.mark.parametrize(
    "broken", [b'{"step": 2, "lo', b"\0" * 600, b"\xff\xfe\x00garbage", b"[1, 2]", b'{"loss": 1.0}', b'{"step": "2"}']
)
def test_a_line_that_is_none_costs_no_other(tmp_path, broken):
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n' + broken + b'\n{"step": 3}\n' + broken)
    assert read_log(tmp_path) == [{"step": 1}, {"step": 3}]
    RunLog(tmp_path, 5).close()
    assert lines(tmp_path) == [{"step": 1}, {"step": 3}]  # and it is gone


def test_nothing_but_whole_lines_after_a_kill_at_any_moment(tmp_path):
    moments = random.Random(0)
    for attempt in range(12):
        if (child := os.fork()) == 0:
            try:
                log = RunLog(tmp_path, 10**9)
                for step in range(10**9):
                    log.scalars(step, **{f"a_long_name_{number}": step / 7 for number in range(40)})
            finally:
                os._exit(1)
        size = (tmp_path / "log.jsonl").stat().st_size if attempt else 0
        while not (tmp_path / "log.jsonl").exists() or (tmp_path / "log.jsonl").stat().st_size <= size:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert len(lines(tmp_path)) == len(read_log(tmp_path)) > 0


def test_a_write_cut_short_is_taken_back(tmp_path):
    long = {"step": 0, "text": "x" * 20_000}  # TensorBoard's files are smaller, and meet no limit
    (tmp_path / "log.jsonl").write_text(json.dumps(long) + "\n")
    with closing(RunLog(tmp_path, 1)) as log:
        log.scalars(1, loss=1.0)
        before = (tmp_path / "log.jsonl").read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))  # the system takes five bytes of a line
        try:
            with pytest.raises(OSError, match=r"could not write .*log.jsonl at step 2: .*free disk space"):
                log.scalars(2, loss=2.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / "log.jsonl").read_bytes() == before
        log.scalars(2, loss=2.0)
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]


@pytest.fixture
def small_disk(mounted):
    """A file system of 256 KiB."""
    return mounted("256k")


def test_a_full_disk_leaves_whole_lines_and_the_log_goes_on_when_there_is_space(small_disk):
    log, step = RunLog(small_disk, 0), 0
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 128 * 1024)
    with pytest.raises(OSError, match="free disk space and rerun the same command"):
        for step in range(10_000):
            log.scalars(step, **{f"a_long_name_{number}": step / 7 for number in range(40)})
    log.close()  # though TensorBoard's file may not fit
    assert [line["step"] for line in lines(small_disk)] in (list(range(step)), list(range(step + 1)))
    filler.unlink()
    with closing(RunLog(small_disk, step - 1)) as log:
        log.scalars(step, loss=1.0)
    assert lines(small_disk)[-1] == {"step": step, "loss": 1.0}


def test_a_log_that_cannot_be_rewritten_stays_as_it_is(small_disk):
    with closing(RunLog(small_disk, 0)) as log:
        for step in range(30):
            log.scalars(step, **{f"a_long_name_{number}": step / 7 for number in range(40)})
    before = (small_disk / "log.jsonl").read_bytes()
    with pytest.raises(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    with pytest.raises(OSError, match="could not write .*log.jsonl"):
        RunLog(small_disk, 50)
    assert (small_disk / "log.jsonl").read_bytes() == before
    assert {path.name for path in small_disk.iterdir()} == {"log.jsonl", "filler", "tensorboard"}


def test_the_file_is_released_by_close(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        RunLog(tmp_path, 0).close()
    assert len(os.listdir("/proc/self/fd")) <= before


def values(loss: float, skipped: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "gradient_norm": torch.tensor(2 * loss), "skipped": torch.tensor(skipped)}


def test_a_window_means_over_the_steps_that_were_taken():
    window = LogWindow()
    for loss, skipped in ((1.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0), (4.0, 0.0)):
        window.add(values(loss, skipped))
    assert window.steps == 4
    assert window.means().get() == {"loss": 2.5, "gradient_norm": 5.0, "skipped_steps": 2.0}


def test_a_window_of_skipped_steps_alone_has_no_means():
    window = LogWindow()
    window.add(values(float("nan"), 1.0))
    assert window.means().get() == pytest.approx(
        {"loss": float("nan"), "gradient_norm": float("nan"), "skipped_steps": 1.0}, nan_ok=True
    )


def test_a_window_that_was_stored_goes_on():
    unbroken, first = LogWindow(), LogWindow()
    for number, skipped in enumerate((0.0, 1.0, 0.0)):
        unbroken.add(values(number / 3, skipped))
        first.add(values(number / 3, skipped))
    resumed = LogWindow(json.loads(json.dumps(first.state())))
    for window in (unbroken, resumed):
        window.add(values(0.7, 0.0))
    assert resumed.means().get() == unbroken.means().get()


def test_the_means_of_several_processes_are_those_of_all_their_rows():
    windows = [LogWindow(), LogWindow()]
    for step, skipped in enumerate((0.0, 1.0, 0.0)):
        for rank, window in enumerate(windows):
            window.add(values(step + rank, skipped))
    windows[0].totals = {name: (total + windows[1].totals[name]) / 2 for name, total in windows[0].totals.items()}
    assert windows[0].means().get() == {"loss": 1.5, "gradient_norm": 3.0, "skipped_steps": 1.0}


def binned(step: int, skipped: float = 0.0) -> dict[str, torch.Tensor]:
    sums = torch.tensor([[step + 0.5, 0.0], [step, 0.0]]) if not skipped else torch.full((2, 2), math.nan)
    return {"loss_by_t/image": sums, "loss": torch.tensor(1.0), "skipped": torch.tensor(skipped)}


def test_a_mean_by_bins_is_over_the_samples_of_all_steps_that_were_taken():
    window, first = LogWindow(), LogWindow()
    for step, skipped in ((1, 0.0), (2, 1.0), (3, 0.0)):
        window.add(binned(step, skipped))
        first.add(binned(step, skipped))
    resumed = LogWindow(json.loads(json.dumps(first.state())))
    for one in (window, resumed):
        one.add(binned(4))
        means = one.means().get()
        assert means["loss_by_t/image/0.25"] == (1.5 + 3.5 + 4.5) / (1 + 3 + 4)
        assert math.isnan(means["loss_by_t/image/0.75"])  # no sample
        assert means["loss"] == 1.0 and means["skipped_steps"] == 1.0
    assert resumed.state() == window.state()


def test_a_window_counts_steps_that_say_nothing_about_skipping():
    window = LogWindow()
    window.add({"loss": torch.tensor(1.0)})
    window.add({"loss": torch.tensor(2.0)})
    assert window.means().get() == {"loss": 1.5}


def test_numbers_on_the_cpu_are_there_at_once():
    later = AsyncScalars({"a": torch.tensor(1.5), "b": 2})
    assert later.get() == {"a": 1.5, "b": 2.0}
