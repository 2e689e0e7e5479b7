import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta

import pytest
from torch import distributed

from redi.runtime.watchdog import COMPUTING, ENDED, WAITING, Report, Stall, Watchdog, describe

SECONDS = 0.4  # what counts as stalled in these tests


@pytest.fixture
def said(caplog):
    """A function that waits until a warning contains a text, and gives it."""
    logger = logging.getLogger("redi.runtime.watchdog")
    logger.addHandler(caplog.handler)
    logger.propagate = False  # once, whether a program has stopped "redi" from handing records on or not
    caplog.set_level(logging.WARNING, logger=logger.name)

    def wait(text: str, seconds: float = 30.0) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := [m for m in (record.getMessage() for record in caplog.records) if text in m]:
                return found[0]
            time.sleep(0.01)
        raise AssertionError(f"nothing says {text!r}, but {[record.getMessage() for record in caplog.records]}")

    yield wait
    logger.removeHandler(caplog.handler)
    logger.propagate = True


@pytest.fixture
def processes():
    """A function that starts the watchdogs of three ranks, each with a connection of its own to one TCPStore."""
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))

    def connect():
        client = distributed.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=20))
        return distributed.PrefixStore("watchdog", client)

    with ExitStack() as exits:
        yield lambda *ranks: [
            exits.enter_context(Watchdog(rank, 3, connect(), stalled_seconds=SECONDS, host=f"host-{rank}"))
            for rank in ranks
        ]


def sleep_long(ending: threading.Event) -> None:
    ending.wait(60)


def test_a_process_alone_says_what_it_waits_for_and_when_it_goes_on(said):
    with Watchdog(stalled_seconds=SECONDS) as watchdog:
        watchdog.at(57, WAITING)
        assert "waiting for data at step 57" in said("no step for")
        watchdog.at(57, COMPUTING)
        watchdog.at(58, WAITING)
        assert "at step 58" in said("training goes on")


def test_the_line_that_reads_the_data_is_named(said):
    ending = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool, Watchdog(stalled_seconds=SECONDS) as watchdog:
        pool.submit(sleep_long, ending)
        watchdog.at(3, WAITING)
        text = said("waiting for data at step 3")
        ending.set()
    assert f"{__file__}:" in text and "sleep_long" in text


def test_a_process_that_gets_on_is_left_in_peace(caplog, said):
    with Watchdog(stalled_seconds=SECONDS) as watchdog:
        end = time.monotonic() + 3 * SECONDS
        step = 0
        while time.monotonic() < end:
            watchdog.at(step, COMPUTING)
            step += 1
            time.sleep(SECONDS / 40)
    assert not caplog.records


def test_warnings_become_rarer(caplog, said):
    with Watchdog(stalled_seconds=0.1) as watchdog:
        watchdog.at(5, COMPUTING)
        time.sleep(1.5)
    assert 2 <= len(caplog.records) <= 4  # after 0.1, 0.2, 0.4 and 0.8 s


def test_the_rank_that_waits_for_data_is_named_among_those_that_wait_for_it(said, processes):
    for dog in (dogs := processes(0, 1, 2)):
        dog.at(7, COMPUTING)
    dogs[2].at(7, WAITING)
    text = said("waiting for data")
    assert "rank 2 (host-2): waiting for data at step 7" in text and "rank 1" not in text
    assert text.endswith("; the other 2 wait for it")


def test_the_rank_at_the_lowest_step_is_named(said, processes):
    for dog in (dogs := processes(0, 1, 2)):
        dog.at(8, COMPUTING)
    dogs[1].at(7, COMPUTING)
    assert "rank 1 (host-1): computing at step 7" in said("the other 2 wait for it")


def test_a_rank_that_never_came_is_named(said, processes):
    for dog in processes(0, 2):
        dog.at(0, COMPUTING)
    assert "rank 1 did not come to the training loop" in said("no step for")


def test_without_a_store_a_process_speaks_for_itself(said):
    with Watchdog(0, 3, stalled_seconds=SECONDS) as watchdog:
        watchdog.at(5, COMPUTING)
        assert "no step for 0 s: computing at step 5" in said("no step for")


def test_a_rank_that_left_is_named(said, processes):
    for dog in (dogs := processes(0, 1, 2)):
        dog.at(9, COMPUTING)
    time.sleep(SECONDS / 2)
    dogs[1].__exit__()
    assert "rank 1 (host-1) has ended, at step 9" in said("has ended")


HALTED = """
import sys
from datetime import timedelta
from torch import distributed
from redi.runtime.watchdog import COMPUTING, Watchdog

store = distributed.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, timeout=timedelta(seconds=20))
with Watchdog(1, 2, store, stalled_seconds=0.4, host="there") as watchdog:
    watchdog.at(4, COMPUTING)
    sys.stdin.read()
"""


def test_a_process_that_was_halted_is_named(said):
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    other = subprocess.Popen([sys.executable, "-c", HALTED, str(server.port)], stdin=subprocess.PIPE)
    try:
        with Watchdog(0, 2, server, stalled_seconds=SECONDS) as watchdog:
            watchdog.at(4, COMPUTING)
            said("all 2 processes are computing at step 4, and none is behind", 60)  # it is there
            os.kill(other.pid, signal.SIGSTOP)
            text = said("rank 1 (there) is silent")
    finally:
        other.kill()
        other.communicate()
    assert "computing at step 4" in text and "is gone, was halted, or is cut off" in text


def watchdogs() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "watchdog"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_thread_ends_with_whatever_ends_training(error):
    with pytest.raises(error), Watchdog(stalled_seconds=600.0):
        assert watchdogs()
        raise error
    assert not watchdogs()


def test_a_store_that_is_gone_ends_the_watch_and_not_the_training(said):
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=1))
    client = distributed.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=1))
    with Watchdog(1, 2, client, stalled_seconds=SECONDS) as watchdog:
        watchdog.at(1, COMPUTING)
        del server
        assert "rank 1" in said("cannot reach the others any more")
        watchdog.at(2, COMPUTING)
    assert not watchdogs()


def test_a_loop_that_waits_in_the_store_does_not_hold_up_the_watchdog():
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    client = distributed.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=2))
    with ThreadPoolExecutor(1) as pool, Watchdog(1, 2, client, stalled_seconds=SECONDS):
        waiting = pool.submit(client.get, "what nobody sets")
        time.sleep(5 * SECONDS / 8)
        first = json.loads(server.get("1"))["number"]
        time.sleep(5 * SECONDS / 8)
        assert json.loads(server.get("1"))["number"] > first and not waiting.done()
        assert isinstance(waiting.exception(), RuntimeError)  # it waited all the time


def test_zero_switches_it_off():
    with Watchdog(stalled_seconds=0.0) as watchdog:
        watchdog.at(1, COMPUTING)
        assert not watchdogs()


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="train.stalled_seconds"):
        Watchdog(stalled_seconds=bad)


def report(step: int, phase: str, rank: int = 0, **further) -> Report:
    return Report(f"host-{rank}", step, phase, 63.0, **further)


@pytest.mark.parametrize(
    ("steps", "silent", "expected"),
    [
        ([(5, COMPUTING)] * 3, {}, "all 3 processes are computing at step 5, and none is behind"),
        ([(5, WAITING)] * 3, {}, "rank 0 (host-0): waiting for data at step 5 for 63 s; rank 1 (host-1): waiting"),
        ([(5, "measuring"), *[(5, COMPUTING)] * 2], {}, "rank 0 (host-0): measuring at step 5 for 63 s; the other 2"),
        (
            [(6, COMPUTING), (5, WAITING), (6, WAITING)],
            {},
            "rank 1 (host-1): waiting for data at step 5 for 63 s; the",
        ),
        (
            [(6, COMPUTING), (5, WAITING), (6, COMPUTING)],
            {2: 90.0},
            "rank 2 (host-2) is silent for 90 s, after computing",
        ),
        ([(5, COMPUTING), (5, ENDED), (5, COMPUTING)], {1: 90.0}, "rank 1 (host-1) has ended, at step 5"),
    ],
)
def test_the_process_that_the_others_wait_for_is_found(steps, silent, expected):
    reports = {rank: report(*place, rank) for rank, place in enumerate(steps)}
    text = describe(reports, {rank: silent.get(rank, 0.0) for rank in reports}, len(steps), patience=60.0)
    assert text.startswith(expected)


def test_of_many_processes_behind_a_few_are_named():
    reports = {rank: report(5, WAITING, rank) for rank in range(100)}
    text = describe(reports, dict.fromkeys(reports, 0.0), 100, patience=60.0)
    assert text.endswith("; and 96 more") and len(text) < 400


def test_a_stall_is_measured_by_one_clock(caplog, said):
    stall = Stall(100.0, 1)
    for now in (0.0, 99.0):
        stall.look({0: report(5, WAITING)}, now)
    assert not caplog.records
    for now in (100.0, 150.0, 199.0, 200.0, 399.0, 400.0):
        stall.look({0: report(5, WAITING)}, now)
    stall.look({0: report(6, WAITING)}, 450.0)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "no step for 100 s", "no step for 200 s", "no step for 400 s", "training goes on, at step 6, after 450 s"
    ]  # fmt: skip


def windows(world_size: int, *shares: float) -> Watchdog:
    """Rank 0, never started, after a window of 1000 seconds a rank."""
    watchdog = Watchdog(0, world_size)
    for rank, share in enumerate(shares):
        spent = {WAITING: 1000 * share, COMPUTING: 1000 * (1 - share)}
        watchdog.latest[rank] = report(5, COMPUTING, rank, spent=spent)
    return watchdog


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.1, 0.9, 0.1], "rank 1 (host-1) spent 90 % of its time waiting for data; the others 10 %"),
        ([0.8], "training spent 80 % of its time waiting for data"),
        ([0.1, 0.4, 0.1], None),
    ],
)
def test_a_process_that_mostly_waits_for_data_is_named(caplog, said, shares, expected):
    windows(len(shares), *shares).end_window()
    assert [record.getMessage() for record in caplog.records] == ([expected] if expected else [])


def test_a_window_is_judged_by_itself_and_said_ever_more_rarely(caplog, said):
    watchdog = windows(1, 0.9)
    for number in range(1, 8):
        watchdog.latest[0].spent = {WAITING: 900.0 * number, COMPUTING: 100.0 * number}
        watchdog.end_window()
    assert len(caplog.records) == 3  # of the windows 1, 3 and 7
    watchdog.latest[0].spent = {WAITING: 900.0 * 7, COMPUTING: 700.0 + 5000}  # of all time, mostly waiting
    for _ in range(8):
        watchdog.end_window()
    assert len(caplog.records) == 3


def test_a_watchdog_that_is_switched_off_says_nothing(said, caplog):
    with Watchdog(stalled_seconds=0) as watchdog:
        watchdog.at(1, WAITING)
        watchdog.end_window()
    assert not caplog.records


def test_saying_where_the_loop_is_costs_next_to_nothing():
    with Watchdog() as watchdog:
        began = time.perf_counter()
        for step in range(10_000):
            watchdog.at(step, WAITING)
        assert time.perf_counter() - began < 1.0  # 100 microseconds each, and it is 1
