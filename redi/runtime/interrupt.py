"""Stopping between two steps rather than inside one."""

import signal
import threading

# Ctrl-C; what schedulers and torchrun end a job with; what Slurm and submitit warn with before they take it away.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class StopRequest:
    """Context in which the first of SIGNALS sets `requested`, its number; a Ctrl-C after it interrupts at once.

    Others after it are ignored: a scheduler's warning may come twice, and must not break the checkpoint.
    """

    def __enter__(self) -> "StopRequest":
        self.requested: int | None = None
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, _frame) -> None:
        if self.requested is None:
            self.requested = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Stopped(KeyboardInterrupt):
    """Training was asked to stop by a signal and has written its checkpoint at `step`.

    A program exits with 128 + `signal_number`, as shells do: 130 Ctrl-C, 138 SIGUSR1, 140 SIGUSR2, 143 SIGTERM. A batch
    script queues its job again after 138 and 140.
    """

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} at step {step}")
        self.signal_number, self.step = signal_number, step
