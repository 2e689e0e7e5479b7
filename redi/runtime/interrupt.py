"""Stopping between two steps rather than inside one."""

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)

# Ctrl-C; what schedulers and torchrun end a job with; what Slurm and submitit warn with before they take it away.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


@contextlib.contextmanager
def heard_at_once(notice: str) -> Iterator[None]:
    """Context in which the first signal that has a handler is logged when it comes, with `notice`.

    Python runs a handler once the operation that runs now returns, which may take minutes; a thread is told at once.
    """
    heard, sender = socket.socketpair()
    sender.setblocking(False)  # as `set_wakeup_fd` demands

    def say() -> None:
        if number := heard.recv(1):
            log.warning("%s was heard: %s", signal.Signals(number[0]).name, notice)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.shutdown(socket.SHUT_WR)  # which ends the thread, also where a forked process holds a copy
        thread.join()
        sender.close()
        heard.close()


class StopRequest(contextlib.ExitStack):
    """Context in which the first of SIGNALS sets `requested`, its number; a Ctrl-C after it interrupts at once.

    Others after it are ignored: a scheduler's warning may come twice, and must not break the checkpoint.
    `notice`: what the first does, for the log.
    """

    def __init__(self, notice: str):
        super().__init__()
        self.notice, self.requested = notice, None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self.enter_context(heard_at_once(f"{self.notice}; Ctrl-C once more interrupts"))
            for number in SIGNALS:
                self.callback(signal.signal, number, signal.signal(number, self._handle))
        return self

    def interrupt(self, message: str) -> None:
        """Raise KeyboardInterrupt, for a program's exit status, if a signal came."""
        if self.requested is not None:
            stopped = KeyboardInterrupt(message)
            stopped.signal_number = self.requested
            raise stopped

    def _handle(self, number: int, _frame) -> None:
        if self.requested is None:
            self.requested = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


class DryRunEnd(Exception):
    """A dry run has done what it does, and the program ends well."""


class Stopped(KeyboardInterrupt):
    """Training was asked to stop by a signal and has written its checkpoint at `step`.

    A program exits with 128 + `signal_number`, as shells do: 130 Ctrl-C, 138 SIGUSR1, 140 SIGUSR2, 143 SIGTERM. A batch
    script queues its job again after 138 and 140.
    """

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} at step {step}")
        self.signal_number, self.step = signal_number, step
