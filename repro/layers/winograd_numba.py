"""The transforms of Winograd's convolution on the CPU, compiled by Numba (the formulas: ``winograd.py``).

A tile's pixels, up to 6 x 6 with some channels each, are copied into a square in the first-level cache, transformed
there down its columns and along its rows, and copied out. Eight channels are one register.
"""

# mypy: disable-error-code="no-untyped-def"
# Numba derives the types of a kernel's arguments; its docstring gives them.
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils

from repro.layers.numba_lanes import LANES, Intrinsic, Lowering, entry, kernel, load, spread, store

F = np.float32
Matrix = npt.NDArray[np.float64]
# Interpolation points, infinity being None; m outputs use the first m + 2. Halves in place of ±2 are no more exact.
POINTS: tuple[float | None, ...] = (0.0, None, 1.0, -1.0, 2.0, -2.0)
SIDE = 6  # of the square, in pixels
BLOCK = 64  # channels in the square, at most


class Kind(NamedTuple):
    """How a row of neighbouring outputs is computed from its inputs in one dimension.

    Attributes:
        outputs: their number m.
        inputs: the number of pixels read.
        before: how many of these lie before the first output.
        points: indices of the rows of ``TAPS`` that it uses, P.
        b: (P, inputs), inputs -> points.
        a: (P, outputs), its transpose takes points -> outputs.
    """

    outputs: int
    inputs: int
    before: int
    points: tuple[int, ...]
    b: Matrix
    a: Matrix


def _powers(degree: int, count: int) -> Matrix:
    """The first ``count`` points' powers 0 … degree; of infinity the highest alone."""
    rows = [
        [0.0] * degree + [1.0] if p is None else [p**i for i in range(degree + 1)] for p in POINTS[:count]
    ]
    return np.array(rows)


def _scale(point: float | None) -> float:
    """Of a row of G: for four outputs it makes B whole numbers, as Lavin and Gray have it."""
    others = [p for p in POINTS if p is not None and p != point]
    return 1.0 if point is None else 1 / abs(math.prod(point - p for p in others))


SCALES = np.array([_scale(point) for point in POINTS])


def _interpolating(outputs: int) -> Kind:
    """Toom and Cook's: the transpose of multiplying polynomials by interpolation at m + 2 points."""
    count = outputs + 2
    b = np.linalg.inv(_powers(count - 1, count)).T / SCALES[:count, None]
    return Kind(outputs, count, 1, tuple(range(count)), b, _powers(outputs - 1, count))


# (P of all kinds, 3), the taps before, at and after the output -> points (G). The last three rows are for two pixels
# alone between zeros, which take three multiplications instead of four, and for one pixel alone.
TAPS = np.concatenate(
    [_powers(2, SIDE) * SCALES[:, None], [[0.0, 1.0, 0.0], [0.0, -1.0, 1.0], [1.0, -1.0, 0.0]]]
)
KINDS = (
    _interpolating(4),
    _interpolating(3),
    _interpolating(2),
    Kind(2, 2, 0, (6, 7, 8), np.array([[1.0, 1], [0, 1], [1, 0]]), np.array([[1.0, 1], [1, 0], [0, 1]])),
    Kind(1, 1, 0, (6,), np.array([[1.0]]), np.array([[1.0]])),
)
FOUR, THREE, TWO, TWO_ALONE, ONE_ALONE = range(len(KINDS))
COUNTS = np.array([len(kind.points) for kind in KINDS])
# What the kernels transform: inputs (0) and outputs (1), to points and back.
READS = np.array([[kind.inputs for kind in KINDS], [kind.outputs for kind in KINDS]])
BEFORE = np.array([[kind.before for kind in KINDS], [0] * len(KINDS)])
_TO_POINTS = [kind.b for kind in KINDS] + [kind.a for kind in KINDS]
MATRICES = _TO_POINTS + [matrix.T for matrix in _TO_POINTS]


@Intrinsic
def combine(typingctx: Any, matrix: Any, square: Any, at: Any, step: Any) -> Lowering:
    """Multiply the vectors at ``at``, ``at + step``, … of ``square`` by ``MATRICES[matrix]``, in place."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number, _, at, step = args
        fields = cgutils.create_struct_proxy(sig.args[1])(context, builder, args[1])
        kind = ir.VectorType(ir.FloatType(), LANES)

        def pointer(index: int) -> Any:
            place = builder.add(at, builder.mul(step, ir.Constant(step.type, index)))
            return builder.bitcast(builder.gep(fields.data, [place]), kind.as_pointer())

        after = builder.append_basic_block("combined")
        switch = builder.switch(number, after)
        for case, rows in enumerate(MATRICES):
            block = builder.append_basic_block("matrix")
            switch.add_case(ir.Constant(number.type, case), block)
            builder.position_at_end(block)
            values = [builder.load(pointer(column), align=4) for column in range(rows.shape[1])]
            for index, row in enumerate(rows):
                total = None
                for factor, value in zip(row.tolist(), values, strict=True):
                    if factor == 0:
                        continue
                    if total is not None and factor == -1:
                        total = builder.fsub(total, value, flags=("contract",))
                        continue
                    if factor != 1:
                        value = builder.fmul(ir.Constant(kind, [factor] * LANES), value, flags=("contract",))
                    total = value if total is None else builder.fadd(total, value, flags=("contract",))
                builder.store(total, pointer(index), align=4)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(types.intp, square, types.intp, types.intp), generate


@kernel
def transform(matrix_down, matrix_along, square, columns, rows, channels):
    """Both transforms in ``square`` (6, 6, BLOCK), flat: ``columns`` of them down, then ``rows`` of them along."""
    for column in range(columns):
        for c in range(0, channels, LANES):
            combine(matrix_down, square, column * BLOCK + c, SIDE * BLOCK)
    for row in range(rows):
        for c in range(0, channels, LANES):
            combine(matrix_along, square, row * SIDE * BLOCK + c, BLOCK)


@kernel
def place_of(t, side, tiles, rows, columns, dilation):
    """Of tile ``t``: its image, its place among the tiles of its kinds, the first row that it reads and the kind of its
    rows, the same of its columns."""
    top, down = rows[tiles[t, 1]]
    left, along = columns[tiles[t, 2]]
    top -= BEFORE[side, down] * dilation
    left -= BEFORE[side, along] * dilation
    return np.int64(tiles[t, 0]), np.int64(tiles[t, 3]), top, down, left, along


@entry
def gather(begin, end, side, tiles, rows, columns, starts, image, dilation, panels):
    """Tiles ``begin`` … ``end`` of a map, transformed to points.

    Args:
        side: 0 for inputs, with the pixels around them, 1 for outputs.
        tiles: (T, 4) int32: image, index in ``rows``, index in ``columns``, place among the tiles of its kinds.
        rows, columns: (some, 2) int64: first output, kind.
        starts: (kinds, kinds, 6, 6) int64: where in ``panels`` the tiles of two kinds begin, in rows of C.
        image: (N, H, W, C) float32.
        panels: (rows, C) float32, written.
    """
    _, height, width, depth = image.shape
    square = np.empty(SIDE * SIDE * BLOCK, F)
    source, target = image.reshape(-1), panels.reshape(-1)
    zero = spread(F(0))
    for t in range(begin, end):
        n, place, top, down, left, along = place_of(t, side, tiles, rows, columns, dilation)
        high, wide = READS[side, down], READS[side, along]
        for first in range(0, depth, BLOCK):
            channels = min(BLOCK, depth - first)
            for i in range(high):
                y = top + i * dilation
                for j in range(wide):
                    x = left + j * dilation
                    to = (i * SIDE + j) * BLOCK
                    if 0 <= y < height and 0 <= x < width:
                        at = ((n * height + y) * width + x) * depth + first
                        for c in range(0, channels, LANES):
                            store(square, to + c, load(source, at + c))
                    else:
                        for c in range(0, channels, LANES):
                            store(square, to + c, zero)
            kinds = side * len(COUNTS)
            transform(kinds + down, kinds + along, square, wide, COUNTS[down], channels)
            for i in range(COUNTS[down]):
                for j in range(COUNTS[along]):
                    at = (i * SIDE + j) * BLOCK
                    to = (starts[down, along, i, j] + place) * depth + first
                    for c in range(0, channels, LANES):
                        store(target, to + c, load(square, at + c))


@entry
def scatter(begin, end, first, last, side, tiles, rows, columns, starts, image, dilation, panels, bias):
    """The transpose of ``gather``, of the channels ``first`` … ``last``.

    Adds to ``image`` where the tiles are inputs, which overlap; outputs are written, plus ``bias`` (C).
    """
    _, height, width, depth = image.shape
    square = np.empty(SIDE * SIDE * BLOCK, F)
    target, source = image.reshape(-1), panels.reshape(-1)
    for t in range(begin, end):
        n, place, top, down, left, along = place_of(t, side, tiles, rows, columns, dilation)
        high, wide = READS[side, down], READS[side, along]
        for block in range(first, last, BLOCK):
            channels = min(BLOCK, last - block)
            for i in range(COUNTS[down]):
                for j in range(COUNTS[along]):
                    to = (i * SIDE + j) * BLOCK
                    at = (starts[down, along, i, j] + place) * depth + block
                    for c in range(0, channels, LANES):
                        store(square, to + c, load(source, at + c))
            kinds = (2 + side) * len(COUNTS)
            transform(kinds + down, kinds + along, square, COUNTS[along], high, channels)
            for i in range(high):
                y = top + i * dilation
                for j in range(wide):
                    x = left + j * dilation
                    at = (i * SIDE + j) * BLOCK
                    if 0 <= y < height and 0 <= x < width:
                        to = ((n * height + y) * width + x) * depth + block
                        if side == 0:
                            for c in range(0, channels, LANES):
                                store(target, to + c, load(target, to + c) + load(square, at + c))
                        else:
                            for c in range(0, channels, LANES):
                                store(target, to + c, load(bias, block + c) + load(square, at + c))
