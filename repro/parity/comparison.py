"""One net's blobs beside another's: one row per blob, in the net's order, and the first row that differs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from repro.constants import TOLERANCE
from repro.files import as_json_holds


@dataclass(frozen=True)
class BlobComparison:
    """How a blob compares.

    ``layer`` makes the blob, ``type`` is its Caffe type, ``shape`` that of our blob (None where there is none).
    ``absolute`` and ``relative`` are the largest differences, the latter divided by the largest expected value; None
    where nothing could be compared. ``index`` is the first place over the tolerance, with both values there.
    ``note`` says in words what numbers cannot. ``in_place``: layers that change the blob after ``layer`` made it.
    """

    layer: str
    type: str
    blob: str
    shape: tuple[int, ...] | None = None
    absolute: float | None = None
    relative: float | None = None
    index: tuple[int, ...] | None = None
    value: float | None = None
    expected: float | None = None
    note: str = ""
    in_place: tuple[str, ...] = ()
    differs: bool = False


@dataclass(frozen=True)
class Difference(BlobComparison):
    """The first row that differs, the tolerance, and the ``table`` of all rows as text. ``str()`` is one line."""

    tolerance: float = TOLERANCE
    table: str = field(default="", repr=False)

    def __str__(self) -> str:
        place = ", then ".join(
            [f"layer {self.layer} ({self.type})", *(f"{n} in-place" for n in self.in_place)]
        )
        line = f"first difference: {place}, blob {self.blob}: "
        if self.index is None:
            return line + self.note
        line += f"at {self.index} {self.value:.9g}, expected {self.expected:.9g}"
        if self.note:
            return f"{line}; {self.note}"
        return (
            f"{line}; the largest difference is {self.absolute:.3g}, {self.relative:.3g} of the largest value, "
            f"{self.tolerance:g} allowed"
        )


@dataclass(frozen=True)
class Comparison:
    """All rows, in the net's order. ``beside`` names what the net was compared with, ``note`` how, if that matters."""

    rows: list[BlobComparison]
    tolerance: float
    beside: str
    note: str = ""

    @property
    def first(self) -> Difference | None:
        """The first row that differs."""
        row = next((row for row in self.rows if row.differs), None)
        if row is None:
            return None
        return Difference(**vars(row), tolerance=self.tolerance, table="\n".join(self.table()))

    def table(self) -> list[str]:
        """One line per row, under a heading."""
        cells = [("layer", "type", "blob", "shape", "difference", "")]
        for row in self.rows:
            shape = "" if row.shape is None else "x".join(map(str, row.shape)) or "scalar"
            relative = "-" if row.relative is None else f"{row.relative:.2e}"
            notes = [f"after {', '.join(row.in_place)} in-place"] if row.in_place else []
            notes += [row.note] if row.note else []
            notes += ["DIFFERS"] if row.differs else []
            cells.append((row.layer, row.type, row.blob, shape, relative, "; ".join(notes)))
        widths = [max(len(line[column]) for line in cells) for column in range(5)]
        return [
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[5]]
            ).rstrip()
            for line in cells
        ]

    def lines(self) -> list[str]:
        """The table and a verdict."""
        return [*([self.note] if self.note else []), *self.table(), self.verdict()]

    def verdict(self) -> str:
        """One line: the first difference, or how many blobs agree and how far."""
        if self.first:
            return str(self.first)
        compared = [row for row in self.rows if row.relative is not None]
        left = len(self.rows) - len(compared)
        worst = max(compared, key=lambda row: row.relative or 0)
        return (
            f"{len(compared)} blobs equal {self.beside} within {self.tolerance:g} of their largest value; "
            f"the furthest is {worst.blob}, {worst.relative:.2e}" + (f"; {left} not compared" if left else "")
        )

    def as_json(self) -> dict[str, Any]:
        """The same for programs; numbers that JSON has not (NaN, infinity) are None."""
        rows = [as_json_holds(asdict(row)) for row in self.rows]
        first = next((row for row in rows if row["differs"]), None)
        return {
            "equal": first is None,
            "beside": self.beside,
            "note": self.note,
            "tolerance": self.tolerance,
            "first_difference": first,
            "rows": rows,
        }


def to_array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    """Values on the CPU, as float64."""
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def compare_blob(
    layer: str,
    type_: str,
    blob: str,
    values: torch.Tensor | np.ndarray,
    expected: torch.Tensor | np.ndarray,
    tolerance: float,
    in_place: tuple[str, ...] = (),
) -> BlobComparison:
    """The row of one blob. NaN on either side is a difference, equal infinities are none.

    >>> row = compare_blob("conv1", "Convolution", "conv1", np.array([1.0, 2.5]), np.array([1.0, 2.0]), 1e-5)
    >>> row.differs, row.index, row.value, row.expected, row.relative
    (True, (1,), 2.5, 2.0, 0.25)
    """
    got, want = to_array(values), to_array(expected)
    head: dict[str, Any] = {
        "layer": layer,
        "type": type_,
        "blob": blob,
        "shape": got.shape,
        "in_place": in_place,
    }
    if got.shape != want.shape:
        note = f"the shape is {_shown(got.shape)}, expected {_shown(want.shape)}"
        return BlobComparison(**head, note=note, differs=True)
    with np.errstate(invalid="ignore"):
        difference = np.where(got == want, 0.0, np.abs(got - want))
    largest = float(np.abs(want[np.isfinite(want)]).max(initial=0.0))
    wrong = ~(difference <= tolerance * largest)
    absolute = float(difference.max(initial=0.0))  # NaN where one is
    relative = absolute / largest if largest else absolute and math.inf
    found = BlobComparison(**head, absolute=absolute, relative=relative)
    if not wrong.any():
        return found
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    sides = [
        name for name, side in (("our values", got), ("the expected values", want)) if np.isnan(side).any()
    ]
    return BlobComparison(
        **head,
        absolute=absolute,
        relative=relative,
        index=first,
        value=float(got[first]),
        expected=float(want[first]),
        note=f"NaN among {' and '.join(sides)}" if sides else "",
        differs=True,
    )


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "that of a scalar"


@dataclass
class BlobStep:
    """A blob in the order in which a net makes them: its layer, the layer's type, and who changes it in-place later."""

    layer: str
    type: str
    blob: str
    optional: bool = False  # inputs, and the copies that Caffe makes of a blob with several readers
    in_place: tuple[str, ...] = ()


def steps(
    inputs: Iterable[str], layers: Iterable[tuple[str, str, Sequence[str], Sequence[str | None]]]
) -> list[BlobStep]:
    """The blobs of a net in the order in which its layers make them.

    Of each layer: name, type, the blobs that it writes, and Caffe's names for the copies of blobs that it reads.
    """
    found = {name: BlobStep("input", "Input", name, optional=True) for name in inputs}
    for name, type_, writes, copies in layers:
        for copy in filter(None, copies):
            found.setdefault(
                copy, BlobStep(copy.rpartition("_split_")[0] + "_split", "Split", copy, optional=True)
            )
        for blob in writes:
            if blob in found:
                found[blob].in_place += (name,)
            else:
                found[blob] = BlobStep(name, type_, blob, optional=type_ == "Input")
    return [*found.values()]
