"""Signals that end a command: what a run saves first, and what worker processes must not hear."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from utils.common.first_failure import rank

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # Ctrl-C, kill, a lost terminal, Slurm
SAME_SIGNAL = 2.0  # s within which a terminal, torchrun or Slurm may send the same request twice
CONTINUE = "go on with the same command, a training with --resume"


class Interruption(KeyboardInterrupt):
    """A signal that ends the command; the exit status is 128 plus its number, as in a shell.

    Parameters
    ----------
    number : int
    kept : str
        What is left, and how to go on.
    """

    def __init__(self, number: int, kept: str = CONTINUE) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {kept}")
        self.status = 128 + number


@contextmanager
def on_stop_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Call a handler for each of `STOP_SIGNALS`, but those that the caller ignores, as nohup does."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    heard = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in heard:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in heard.items():
            signal.signal(number, old)


def interrupt(number: int, _frame: Any) -> None:
    """Raise `Interruption`; a handler of signals."""
    raise Interruption(number)


@contextmanager
def remembered_signals() -> Iterator[list[int]]:
    """Yield a list that gets the first signal, so that a run can end where it can save; a later one ends it at once."""
    received: list[int] = []
    times: list[float] = []

    def remember(number: int, frame: Any) -> None:
        times.append(time.monotonic())
        if times[-1] - times[0] > SAME_SIGNAL:
            interrupt(number, frame)
        if not received:
            received.append(number)
            if rank() == 0:
                name = signal.Signals(number).name
                os.write(2, f"\n{name}: saves after this step and stops; send it again to stop at once\n".encode())

    with on_stop_signals(remember):
        yield received


def ignore_interrupts() -> None:
    """Ignore Ctrl-C in a worker; the main process ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def outlive_signals(_worker: int = 0) -> None:
    """Ignore all `STOP_SIGNALS` in a worker that reads scans.

    They may reach every process of a job. A worker that died would end the
    main process before it can save; without a main process it ends itself.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
