"""Timing on the host or on a device, alone or against a reference in turns.

Machines are shared and their clocks vary, so a ratio is taken from runs that alternate in one process, and is the
median of the ratios of neighbours; a time is the best of its runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One line of the benchmark.

    Attributes:
        part: what was timed.
        seconds: best time of one run.
        reference, reference_seconds: what it was compared with in turns, and that one's best time.
        ratio: median of reference time over own time; above 1 we are faster.
        metrics: anything else worth a column, such as ``images/s``.
    """

    part: str
    seconds: float
    reference: str | None = None
    reference_seconds: float | None = None
    ratio: float | None = None
    metrics: dict[str, float] | None = None


class Timer:
    """Times work on ``device``: ``seconds`` is about what a part may take, at least two runs are done of each.

    The first run, in which kernels are compiled and buffers made, never counts.
    """

    def __init__(self, device: torch.device, *, seconds: float = 2.0) -> None:
        self.device, self.seconds = device, seconds

    def once(self, work: Work) -> float:
        """Seconds of one run, the device's share included."""
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def row(self, part: str, work: Work, **metrics: float) -> Timing:
        """Time ``work`` alone."""
        work()
        times = [self.once(work)]
        for _ in range(self._more(times[0])):
            times.append(self.once(work))
        return Timing(part, min(times), metrics=metrics or None)

    def steps(self, steps: Mapping[str, Work]) -> dict[str, float]:
        """Best time of each of several steps that need each other and run in their order."""
        for work in steps.values():
            work()
        rounds = [[self.once(work) for work in steps.values()]]
        for _ in range(self._more(sum(rounds[0]))):
            rounds.append([self.once(work) for work in steps.values()])
        return dict(zip(steps, map(min, zip(*rounds, strict=True)), strict=True))

    def against(self, part: str, work: Work, reference: str, reference_work: Work | None) -> Timing:
        """Time ``work`` and its reference in turns; without a reference, ``work`` alone."""
        if reference_work is None:
            return self.row(part, work)
        work()
        reference_work()
        pairs = [(self.once(work), self.once(reference_work))]
        for _ in range(self._more(sum(pairs[0]))):
            pairs.append((self.once(work), self.once(reference_work)))
        ratio = statistics.median(theirs / ours for ours, theirs in pairs)
        best, best_reference = (min(times) for times in zip(*pairs, strict=True))
        return Timing(part, best, reference, best_reference, ratio)

    def _more(self, first: float) -> int:
        return max(1, min(20, int(self.seconds / first)))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def matmul_rate(timer: Timer, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations per second of a square matrix product, the yardstick for the network."""
    a, b = (torch.randn(size, size, device=timer.device).to(dtype) for _ in range(2))
    return 2 * size**3 / timer.row("matrix product", lambda: a @ b).seconds
