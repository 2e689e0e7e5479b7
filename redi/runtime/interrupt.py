"""Stop on a signal between two steps."""

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)

# SIGINT: Ctrl-C. SIGTERM: schedulers and torchrun. SIGUSR1, SIGUSR2: warnings of Slurm and submitit before the end.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


@contextlib.contextmanager
def log_signal(notice: str) -> Iterator[None]:
    """Context that logs the first handled signal, with `notice`, as soon as it arrives.

    Python runs a handler only after the current operation returns, which may take minutes. A thread logs at once.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)  # required by set_wakeup_fd

    def report() -> None:
        if number := receiver.recv(1):
            log.warning("received %s: %s", signal.Signals(number[0]).name, notice)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.shutdown(socket.SHUT_WR)  # ends the thread even if a forked process holds a copy of the socket
        thread.join()
        sender.close()
        receiver.close()


class StopRequest(contextlib.ExitStack):
    """Context in which the first of SIGNALS sets `requested` to its number; a second Ctrl-C interrupts at once.

    Other repeated signals are ignored: a scheduler may send its warning twice, which must not interrupt the checkpoint.
    `notice` states the effect of the first signal in the log.
    """

    requested: int | None

    def __init__(self, notice: str):
        super().__init__()
        self.notice, self.requested = notice, None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self.enter_context(log_signal(f"{self.notice}; press Ctrl-C again to interrupt at once"))
            for number in SIGNALS:
                self.callback(signal.signal, number, signal.signal(number, self._handle))
        return self

    def interrupt(self, message: str) -> None:
        """Raise KeyboardInterrupt if a signal arrived; its `signal_number` sets the program's exit status."""
        if self.requested is not None:
            stopped = KeyboardInterrupt(message)
            stopped.signal_number = self.requested  # type: ignore[attr-defined]  # read by redi.command_line
            raise stopped

    def _handle(self, number: int, _frame) -> None:
        if self.requested is None:
            self.requested = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


class DryRunEnd(Exception):
    """Raised at the end of a dry run, so that the program exits with status 0."""


class Stopped(KeyboardInterrupt):
    """Training stopped because of a signal, after writing a checkpoint at `step`.

    The program exits with 128 + `signal_number`, the shell convention: 130 for Ctrl-C, 138 for SIGUSR1, 140 for
    SIGUSR2, 143 for SIGTERM. A batch script requeues its job after 138 and 140.
    """

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} at step {step}")
        self.signal_number, self.step = signal_number, step
