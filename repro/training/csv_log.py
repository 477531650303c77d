"""``log.csv`` and other tables that grow by a row now and then.

Each displayed iteration is a row: ``iteration, lr, loss`` and every loss under its Caffe name, unsmoothed (mean over
the ``iter_size`` mini-batches, as Caffe reports).
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from weights_conversion.files import write_text

log = logging.getLogger(__name__)


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a `CsvLog`, by column, an empty cell as nan; none where there is no such file. Damaged rows are left
    out, with a warning."""
    if not path.is_file():
        return []
    header, rows, damaged = _whole_rows(path)
    if damaged:
        log.warning("%s: %d damaged rows are left out", path, damaged)
    return [dict(zip(header, [float(cell or "nan") for cell in row], strict=True)) for row in rows]


def _whole_rows(path: Path, width: int = 0) -> tuple[list[str], list[list[str]], int]:
    """Header, the rows of ``width`` cells (by default the header's) that are numbers or empty, and how many are not.

    A last line without an end is no row: a process that was killed has left it, and half a number could pass for one.
    """
    lines = path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]
    header, *found = [line.rstrip("\r").split(",") for line in lines] or [[]]
    width = width or len(header)
    rows = [row for row in found if len(row) == width and all(map(_is_number, row))]
    return header, rows, len(found) - len(rows)


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True


class CsvLog:
    """A CSV file with a column ``iteration``: opened at an iteration, it keeps the rows before it and appends.

    Of a damaged file the rows that are whole are kept. A warning says where rows are lost: ones that are damaged, and
    with ``every``, the iterations from one row to the next, ones that the file breaks off before.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], iteration: int, every: int = 0) -> None:
        self.columns = columns
        kept = io.StringIO()
        writer = csv.writer(kept, lineterminator="\n")
        writer.writerow(columns)
        if path.exists() and iteration:
            writer.writerows(self._kept(path, iteration, every))
        write_text(path, kept.getvalue())
        self.file = path.open("a", newline="", encoding="utf-8", buffering=1)
        self.writer = csv.DictWriter(self.file, self.columns, lineterminator="\n")

    def _kept(self, path: Path, iteration: int, every: int) -> list[list[str]]:
        header, rows, damaged = _whole_rows(path, len(self.columns))
        if len(header) == len(self.columns) and all(map(_is_number, header)):
            rows.insert(0, header)  # the line of the names is gone
        numbered = [row for row in rows if row[self.columns.index("iteration")]]
        damaged += len(rows) - len(numbered)
        before = [row for row in numbered if float(row[self.columns.index("iteration")]) < iteration]
        last = [float(row[self.columns.index("iteration")]) for row in before[-2:]] or [-1.0]
        step = max(every, last[-1] - last[0])  # rows may have been further apart in an earlier call
        if every and last[-1] + step < iteration:
            log.warning("%s: its rows from iteration %d to %d are lost", path, last[-1] + step, iteration - 1)
        elif damaged:
            log.warning("%s: %d damaged rows are lost", path, damaged)
        return before

    def close(self) -> None:
        self.file.close()

    def write(self, fields: Mapping[str, float | None]) -> None:
        """Append a row of those fields that have a column; floats get nine digits, None is an empty cell."""
        cells = {name: fields[name] for name in self.columns}
        self.writer.writerow({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in cells.items()})

    def sync(self) -> None:
        """Put the rows on the disk: a snapshot must not outlive the rows that led to it."""
        os.fsync(self.file.fileno())
