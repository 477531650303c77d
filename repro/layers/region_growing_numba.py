"""Region growing's flood on the CPU, compiled by Numba (what it computes: ``region_growing.py``)."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from repro.layers.numba_lanes import entry


@entry
def flood(mapped, reached):
    """Spread ``reached`` over the 8-connected components of equal ``mapped``, in place.

    Args:
        mapped: (N, H, W) int64, class of each cell.
        reached: (N, H, W) bool, the cells to begin with.
    """
    count, height, width = mapped.shape
    waiting = np.empty(height * width, np.int64)
    for image in range(count):
        classes, mark = mapped[image], reached[image]
        length = 0
        for row in range(height):
            for column in range(width):
                if mark[row, column]:
                    waiting[length] = row * width + column
                    length += 1
        while length:
            length -= 1
            row, column = waiting[length] // width, waiting[length] % width
            for r in range(max(row - 1, 0), min(row + 2, height)):
                for c in range(max(column - 1, 0), min(column + 2, width)):
                    if not mark[r, c] and classes[r, c] == classes[row, column]:
                        mark[r, c] = True
                        waiting[length] = r * width + c
                        length += 1
