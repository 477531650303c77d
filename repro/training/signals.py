"""SIGINT and SIGTERM while a stage trains: the iteration ends, a snapshot is written, the process stops."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from repro import distributed
from repro.training.loop import Hook, SolverLoop, Sums


class Signals(Hook):
    """Remembers the first SIGINT or SIGTERM instead of dying of it, and stops after the iteration; a second one acts as
    before. In a thread other than the main one, where Python takes no signals, it does nothing."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def prepare(self, loop: SolverLoop) -> None:
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._remember) for number in numbers}

    def after_iteration(self, loop: SolverLoop, sums: Sums) -> None:
        # the hosts agree, not the devices: all ranks stop after the same iteration
        loop.signal = distributed.largest(self.signal)

    def after_training(self, loop: SolverLoop) -> None:
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
