"""How an iteration's metrics get from the device to the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch


class Row(NamedTuple):
    """One iteration's metrics; ``smoothed`` is Caffe's mean loss over the last ``average_loss`` iterations."""

    iteration: int
    rate: float
    metrics: dict[str, float]
    smoothed: float


class _OnItsWay(NamedTuple):
    iteration: int
    rate: float
    names: list[str]
    values: torch.Tensor
    copied: torch.cuda.Event | None


class Rows:
    """Brings rows to the host. On CUDA a row arrives while the next iterations are already queued, so that no
    iteration waits to be reported; elsewhere at once."""

    def __init__(self) -> None:
        self._waiting: _OnItsWay | None = None

    def send(
        self, iteration: int, rate: float, metrics: dict[str, torch.Tensor], smoothed: torch.Tensor
    ) -> Iterator[Row]:
        """Start the copy of a row of scalars; gives those that have arrived."""
        yield from self.rest()
        values = torch.stack([value.double() for value in (*metrics.values(), smoothed)])
        copied = torch.cuda.Event() if values.is_cuda else None
        values = values.to("cpu", non_blocking=True)
        if copied:
            copied.record()
        self._waiting = _OnItsWay(iteration, rate, list(metrics), values, copied)
        if not copied:
            yield from self.rest()

    def rest(self) -> Iterator[Row]:
        """Wait for what is still on its way."""
        if self._waiting is None:
            return
        iteration, rate, names, values, copied = self._waiting
        self._waiting = None
        if copied:
            copied.synchronize()
        *numbers, smoothed = values.tolist()
        yield Row(iteration, rate, dict(zip(names, numbers, strict=True)), smoothed)
