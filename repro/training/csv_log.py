"""``log.csv``, and the way of the figures in it from the device to the host.

Each displayed iteration is a row: ``iteration, lr, loss`` and every loss under its Caffe name, unsmoothed (mean over
the ``iter_size`` mini-batches, as Caffe reports).
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from repro.files import write_text


class Row(NamedTuple):
    """One iteration's figures; ``smoothed`` is Caffe's mean loss over the last ``average_loss`` iterations."""

    iteration: int
    rate: float
    figures: dict[str, float]
    smoothed: float

    def fields(self) -> dict[str, float]:
        """What ``log.csv`` has of it."""
        return {"iteration": self.iteration, "lr": self.rate, **self.figures}


class _OnItsWay(NamedTuple):
    iteration: int
    rate: float
    names: list[str]
    values: torch.Tensor
    copied: torch.cuda.Event | None


class Figures:
    """Brings rows to the host. On CUDA a row arrives while the next iterations are already queued, so that no
    iteration waits to be reported; elsewhere at once."""

    def __init__(self) -> None:
        self._waiting: _OnItsWay | None = None

    def send(
        self, iteration: int, rate: float, figures: dict[str, torch.Tensor], smoothed: torch.Tensor
    ) -> Iterator[Row]:
        """Start the copy of a row of scalars; gives those that have arrived."""
        yield from self.rest()
        values = torch.stack([value.double() for value in (*figures.values(), smoothed)])
        copied = torch.cuda.Event() if values.is_cuda else None
        values = values.to("cpu", non_blocking=True)
        if copied:
            copied.record()
        self._waiting = _OnItsWay(iteration, rate, list(figures), values, copied)
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


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a `CsvLog`, by column; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(cell) for key, cell in row.items()} for row in csv.DictReader(file)]


class CsvLog:
    """A CSV file with a column ``iteration``: opened at an iteration, it keeps the rows before it and appends."""

    def __init__(self, path: Path, columns: tuple[str, ...], iteration: int) -> None:
        self.columns = columns
        kept = io.StringIO()
        writer = csv.DictWriter(kept, self.columns, lineterminator="\n")
        writer.writeheader()
        if path.exists() and iteration:
            # a process that was killed may have left half a row, which could pass for an earlier iteration's
            rows = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
            writer.writerows(row for row in csv.DictReader(rows) if int(row["iteration"]) < iteration)
        write_text(path, kept.getvalue())
        self.file = path.open("a", newline="", encoding="utf-8", buffering=1)
        self.writer = csv.DictWriter(self.file, self.columns, lineterminator="\n")

    def __enter__(self) -> CsvLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def write(self, fields: Mapping[str, float | None]) -> None:
        """Append a row; floats get nine digits, None is an empty cell."""
        self.writer.writerow({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in fields.items()})

    def sync(self) -> None:
        """Put the rows on the disk: a snapshot must not outlive the rows that led to it."""
        os.fsync(self.file.fileno())
