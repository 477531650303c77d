"""How a map is cut into tiles for Winograd's convolution, and where the tiles' values stand (``winograd.py``)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from repro.layers.winograd_numba import FOUR, KINDS, ONE_ALONE, SIDE, TAPS, THREE, TWO, TWO_ALONE

IntArray = npt.NDArray[np.int64]


@lru_cache(maxsize=256)
def segments(size: int, dilation: int) -> IntArray:
    """(first output, kind) of the tiles of one dimension, phase by phase."""
    found = []
    for phase in range(min(size, dilation)):
        length = -(-(size - phase) // dilation)
        if length <= 2:
            found.append((phase, ONE_ALONE if length == 1 else TWO_ALONE))
            continue
        kinds = [FOUR] * (length // 4) + [THREE] * (length % 4 == 3) + [TWO] * (length % 4 == 2)
        if length % 4 == 1:
            kinds[-1:] = [THREE, TWO]
        first = phase
        for kind in kinds:
            found.append((first, kind))
            first += KINDS[kind].outputs * dilation
    return np.array(found, np.int64)


class Part(NamedTuple):
    """Some tiles. A *panel* holds their rows of C values at one point, those tiles' that use it.

    Attributes:
        tiles, starts: see ``winograd_numba.gather``.
        runs: panels of equal length that follow each other: (first panel, number, first row, rows each).
        rows: of all panels.
    """

    tiles: npt.NDArray[np.int32]
    starts: IntArray
    runs: list[tuple[int, int, int, int]]
    rows: int


class Plan(NamedTuple):
    """How a batch of maps is cut: ``rows`` and ``columns`` as ``segments``, (panels, 9) the rows of G ⊗ G, parts."""

    rows: IntArray
    columns: IntArray
    taps: torch.Tensor
    parts: list[Part]


@lru_cache(maxsize=64)
def plan_of(count: int, height: int, width: int, dilation: int, most_rows: int) -> Plan:
    rows, columns = segments(height, dilation), segments(width, dilation)
    grid = np.indices((count, len(rows), len(columns))).reshape(3, -1).T
    # points that any tile uses; those of most tiles first, so that panels of equal length stand together
    usage = np.zeros((len(TAPS), len(TAPS)), np.int64)
    for (down, along), tiles in _tally(rows, columns, grid).items():
        usage[np.ix_(KINDS[down].points, KINDS[along].points)] += tiles
    order = [pair for pair in sorted(np.ndindex(usage.shape), key=lambda pair: -usage[pair]) if usage[pair]]
    taps = np.stack([np.kron(TAPS[p], TAPS[q]) for p, q in order])
    number = min(len(grid), -(-int(usage.sum()) // max(1, most_rows)))
    pieces = np.array_split(grid, number)
    parts = [_part(rows, columns, piece, order) for piece in pieces]
    return Plan(rows, columns, torch.from_numpy(taps.astype(np.float32)), parts)


def _tally(rows: IntArray, columns: IntArray, tiles: IntArray) -> dict[tuple[int, int], int]:
    """How many tiles there are of each pair of kinds."""
    pairs, counts = np.unique(rows[tiles[:, 1], 1] * len(KINDS) + columns[tiles[:, 2], 1], return_counts=True)
    return {divmod(int(pair), len(KINDS)): int(n) for pair, n in zip(pairs, counts, strict=True)}


def _part(rows: IntArray, columns: IntArray, tiles: IntArray, order: list[tuple[int, ...]]) -> Part:
    tally = _tally(rows, columns, tiles)
    starts = np.zeros((len(KINDS), len(KINDS), SIDE, SIDE), np.int64)
    runs: list[tuple[int, int, int, int]] = []
    at = 0
    for panel, (p, q) in enumerate(order):
        length = 0
        for (down, along), count in tally.items():
            if p in KINDS[down].points and q in KINDS[along].points:
                i, j = KINDS[down].points.index(p), KINDS[along].points.index(q)
                starts[down, along, i, j] = at + length
                length += count
        if runs and runs[-1][3] == length:
            first, number, row, _ = runs[-1]
            runs[-1] = (first, number + 1, row, length)
        else:
            runs.append((panel, 1, at, length))
        at += length
    place = np.empty(len(tiles), np.int64)
    pairs = rows[tiles[:, 1], 1] * len(KINDS) + columns[tiles[:, 2], 1]
    for pair in np.unique(pairs):
        place[pairs == pair] = np.arange(np.count_nonzero(pairs == pair))
    return Part(np.column_stack([tiles, place]).astype(np.int32), starts, runs, at)
