"""SIGINT and SIGTERM while a stage trains: the iteration ends, a snapshot is written, the process stops."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While entered, remembers the first SIGINT or SIGTERM instead of dying of it; a second one acts as before.

    In a thread other than the main one, where Python takes no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._give_back()
        line = f"repro: {signal.Signals(number).name}: stopping after this iteration; a second one stops at once\n"
        os.write(2, line.encode())  # not print, which the signal may have come in the middle of

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
