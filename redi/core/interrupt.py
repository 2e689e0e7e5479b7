"""Stopping between two steps rather than inside one."""

import signal
import threading


class StopRequest:
    """Context in which Ctrl-C and SIGTERM set `requested`; a second Ctrl-C interrupts at once."""

    def __enter__(self) -> "StopRequest":
        self.requested: int | None = None
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, _frame) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.requested = number

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Stopped(KeyboardInterrupt):
    """Training was asked to stop and has written its checkpoint.

    Args:
        signal_number: of the signal; a program exits with 128 + it.
        step: of the checkpoint.
    """

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} at step {step}")
        self.signal_number = signal_number
        self.step = step
