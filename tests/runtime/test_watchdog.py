"""Log messages when training stalls. Most tests pass the time explicitly; a few test the thread."""

import json
import logging
import threading
from datetime import timedelta
from itertools import count

import pytest
from torch import distributed

from redi.runtime import watchdog
from redi.runtime.watchdog import COMPUTING, ENDED, WAITING, Report, Watchdog, slowest_first


@pytest.fixture
def said(caplog):
    """A function that returns the warnings so far."""
    caplog.set_level(logging.WARNING, logger=watchdog.__name__)
    return lambda: [record.getMessage() for record in caplog.records if record.name == watchdog.__name__]


@pytest.fixture
def clock(monkeypatch):
    """A function that advances the clock of the watchdog."""
    now = [1000.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


@pytest.fixture
def thread(tmp_path, caplog):
    """A function that runs a fast watchdog until its warnings contain a text."""

    def until(text: str, start, *ranks, size: int = 1, store=None) -> str:
        warned, logger = threading.Event(), logging.getLogger(watchdog.__name__)
        handler = logging.Handler()
        handler.emit = lambda record: text in record.getMessage() and (texts.append(record.getMessage()), warned.set())
        texts: list[str] = []
        logger.addHandler(handler)
        try:
            with Watchdog(tmp_path, 0, size, store, stalled_seconds=0.1, host="here") as dog:
                start(dog)
                assert warned.wait(30), f"nothing says {text!r}"
        finally:
            logger.removeHandler(handler)
        return texts[0]

    return until


def places(*steps, seconds=63.0) -> dict[int, Report]:
    return {rank: Report(f"host-{rank}", step, phase, seconds) for rank, (step, phase) in enumerate(steps)}


def test_a_stalled_loop_is_reported_with_the_stacks_of_all_threads(thread, tmp_path):
    ending = threading.Event()

    def reading_slowly():
        ending.wait(60)

    reader = threading.Thread(target=reading_slowly)
    reader.start()
    text = thread("no step for", lambda dog: dog.at(57, WAITING))
    ending.set()
    reader.join()
    assert "rank 0 (here): waiting for data at step 57 for 0 s" in text and str(tmp_path) in text
    assert "reading_slowly" in (tmp_path / "stacks_rank_0.txt").read_text()


def test_processes_report_through_the_store(thread, tmp_path):
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    client = distributed.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=20))
    with Watchdog(tmp_path, 1, 3, client, stalled_seconds=0.1, host="there") as other:
        other.at(4, WAITING)
        text = thread("waiting for data at step 4", lambda dog: dog.at(4, COMPUTING), size=3, store=server)
    assert text.index("rank 2 (?): never reached the training loop") < text.index("rank 1 (there)")
    assert text.index("rank 1 (there)") < text.index("rank 0 (here): computing")
    assert json.loads(server.get("1"))[2] == ENDED


def test_a_store_that_is_gone_ends_the_watch_and_not_the_training(caplog, tmp_path):
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=1))
    client = distributed.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=1))
    with Watchdog(tmp_path, 1, 2, client, stalled_seconds=0.1) as dog:
        del server
        dog.thread.join(30)
        assert not dog.thread.is_alive()
        dog.at(2, COMPUTING)
    assert "the watchdog of rank 1 lost its connection to the other processes" in caplog.text


def watchdogs() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "watchdog"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_thread_ends_with_whatever_ends_training(error, tmp_path):
    with pytest.raises(error), Watchdog(tmp_path, stalled_seconds=600.0):
        assert watchdogs()
        raise error
    assert not watchdogs()


def test_zero_switches_it_off(said, tmp_path, clock):
    with Watchdog(tmp_path, stalled_seconds=0.0) as dog:
        dog.at(1, WAITING)
        clock(1e6)
        dog.at(2, WAITING)
        dog.end_window()
        assert not watchdogs()
    assert not said()


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(bad, tmp_path):
    with pytest.raises(ValueError, match="train.stalled_seconds"):
        Watchdog(tmp_path, stalled_seconds=bad)


def test_without_a_store_a_process_speaks_for_itself(said, tmp_path):
    dog = Watchdog(tmp_path, 0, 3, stalled_seconds=100.0)
    for now in (0.0, 100.0):
        dog.look(places((5, COMPUTING)), now)
    assert len(said()) == 1 and "rank 0 (host-0): computing at step 5" in said()[0] and "rank 1" not in said()[0]


def test_warnings_become_rarer_and_the_end_of_a_stall_is_reported(said, tmp_path):
    dog = Watchdog(tmp_path, stalled_seconds=100.0)
    for now in (0.0, 99.0, 100.0, 150.0, 199.0, 200.0, 399.0, 400.0):
        dog.look(places((5, WAITING)), now)
    dog.look(places((6, WAITING)), 450.0)
    assert [text.partition(":")[0] for text in said()] == [
        "no step for 100 s", "no step for 200 s", "no step for 400 s",
        "training resumed at step 6 after a stall of 450 s",
    ]  # fmt: skip


def test_a_run_that_takes_steps_is_left_in_peace(said, tmp_path):
    dog = Watchdog(tmp_path, stalled_seconds=100.0)
    for step in range(10):
        dog.look(places((step, COMPUTING)), 90.0 * step)
    assert not said()


def test_a_process_that_falls_silent_is_named_first(said, tmp_path):
    store = distributed.HashStore()
    dog, seconds = Watchdog(tmp_path, 0, 2, store, stalled_seconds=100.0), count()
    for now in (0.0, 30.0, 60.0, 90.0, 120.0):
        reports = places((4, COMPUTING), (4, COMPUTING))
        dog.look(reports | {0: reports[0]._replace(seconds=next(seconds))}, now)  # rank 1 repeats itself: halted
    silent = "no report for 120 s (ended, suspended or disconnected) after computing at step 4"
    assert f"rank 1 (host-1): {silent}" in said()[0]
    assert said()[0].index("rank 1") < said()[0].index("rank 0")


@pytest.mark.parametrize(
    ("steps", "first"),
    [
        ([(7, COMPUTING), (7, COMPUTING), (7, WAITING)], "rank 2 (host-2): waiting for data at step 7 for 63 s"),
        ([(8, COMPUTING), (7, COMPUTING), (8, WAITING)], "rank 1 (host-1): computing at step 7 for 63 s; rank 2"),
        ([(9, COMPUTING), (9, ENDED), (9, COMPUTING)], "rank 1 (host-1): ended at step 9"),
        ([(5, "measuring"), (5, COMPUTING), (5, COMPUTING)], "rank 0 (host-0): measuring at step 5"),
    ],
)
def test_the_process_that_the_others_wait_for_comes_first(steps, first):
    assert slowest_first(places(*steps), {}, len(steps)).startswith(first)


def test_of_many_processes_a_few_are_named():
    text = slowest_first(places(*[(5, WAITING)] * 100), {}, 100)
    assert text.endswith("; and 96 more") and len(text) < 400


def windows(dog: Watchdog, clock, *windows: tuple[float, float]) -> None:
    """Each window has some seconds of waiting and computing."""
    for waiting, computing in windows:
        dog.at(1, WAITING)
        clock(waiting)
        dog.at(1, COMPUTING)
        clock(computing)
        dog.at(1, COMPUTING)
        dog.end_window()


def test_a_process_that_mostly_waits_for_data_is_named(said, tmp_path, clock):
    windows(Watchdog(tmp_path, 1, 2), clock, (40.0, 60.0), (90.0, 10.0))
    assert said() == ["rank 1 spent 90 % of its time waiting for data"]


def test_slow_data_are_mentioned_ever_more_rarely(said, tmp_path, clock):
    windows(Watchdog(tmp_path), clock, *[(90.0, 10.0)] * 11)
    assert len(said()) == 3  # of the windows 1, 2 to 4, and 5 to 11
