"""Signals during training: the first requests a stop, a second Ctrl-C interrupts, others are ignored."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from redi.runtime.interrupt import Stopped, StopRequest

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_request_and_handlers_return(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopRequest("it stops") as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("first", SIGNALS)
def test_what_is_sent_twice_does_not_break_what_the_first_asked_for(first):
    with StopRequest("it stops") as stop:
        os.kill(os.getpid(), first)
        for later in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), later)
        assert stop.requested == first


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_after_a_request_interrupts_at_once(first):
    with StopRequest("it stops") as stop:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == first


def test_in_another_thread_nothing_is_set():
    found = []

    def body() -> None:
        with StopRequest("it stops") as stop:
            found.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [(None, before)]


class Events(logging.Handler):
    """Record log messages and other events in order."""

    def __init__(self):
        super().__init__()
        self.events, self.logged = [], threading.Event()

    def emit(self, record) -> None:
        self.events.append(record.getMessage())
        self.logged.set()


def test_a_signal_is_heard_while_an_operation_outside_python_runs():
    """The main thread waits for a C mutex, like an operation of torch; logging releases it."""
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)  # zeros are an unlocked mutex
    log, handler, held = logging.getLogger("redi.runtime.interrupt"), Events(), threading.Event()

    def hold_until_heard() -> None:
        library.pthread_mutex_lock(mutex)
        held.set()
        time.sleep(0.2)  # for the main thread to wait in C; a signal before that would be heard, too
        os.kill(os.getpid(), signal.SIGTERM)
        handler.logged.wait(timeout=20)
        library.pthread_mutex_unlock(mutex)

    log.addHandler(handler)
    thread = threading.Thread(target=hold_until_heard)
    try:
        with StopRequest("it stops") as stop:
            thread.start()
            held.wait()
            library.pthread_mutex_lock(mutex)
            handler.events.append("the operation is done")
    finally:
        thread.join()
        log.removeHandler(handler)
    assert stop.requested == signal.SIGTERM
    expected = "received SIGTERM: it stops; press Ctrl-C again to interrupt at once"
    assert handler.events == [expected, "the operation is done"]


# A program that stops as `train` does, without the seconds that importing torch takes.
PROGRAM = """
import os, signal, sys, time
from redi import command_line
from redi.runtime.interrupt import Stopped, StopRequest

def main():
    with StopRequest("it stops") as stop:
        print("ready", flush=True)
        while stop.requested is None:
            time.sleep(0.01)
        raise Stopped(stop.requested, 7)

command_line.program(main)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_the_exit_status_is_what_a_shell_says_of_a_process_killed_by_the_signal(number):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name} at step 7; rerun the same command to continue" in stderr.decode()
    shell = subprocess.run(["sh", "-c", f"sh -c 'kill -{int(number)} $$'; echo $?"], capture_output=True)
    assert int(shell.stdout) == process.returncode  # of one that has no handler for it


def test_the_message_names_signal_and_step():
    assert str(Stopped(signal.SIGUSR1, 12)) == "stopped by SIGUSR1 at step 12"
