"""Region growing's flood on CUDA, in Triton (what it computes: ``region_growing.py``): one program an image.

A program holds its image's grid and lets marks spread by a cell in each direction until none is new. The marks only
ever grow, so the result does not depend on which thread reads before which writes.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton derives the types of a kernel's arguments.
from __future__ import annotations

import torch
import triton
import triton.language as tl

LARGEST = 2**14  # cells of a grid that one program can hold
CELLS = 4  # of a thread, as long as a program's 1024 threads suffice


@triton.jit
def spread(mapped, reached, height, width, B: tl.constexpr):
    """``reached`` int32, ``mapped`` int64, both (N, height, width); ``B`` cells or more, a power of two."""
    first = tl.program_id(0).to(tl.int64) * height * width
    cell = tl.arange(0, B)
    row, column = cell // width, cell % width
    inside = cell < height * width
    own = tl.load(mapped + first + cell, mask=inside, other=-1)
    alike = tl.zeros((B,), tl.int32)  # a bit for each neighbour of the same class
    for place in tl.static_range(9):
        r, c = row + place // 3 - 1, column + place % 3 - 1
        there = inside & (r >= 0) & (r < height) & (c >= 0) & (c < width)
        same = tl.load(mapped + first + r * width + c, mask=there, other=-1) == own
        alike |= (there & same).to(tl.int32) << place
    mark = tl.load(reached + first + cell, mask=inside, other=0)
    fresh = 1
    while fresh > 0:
        before = mark
        for place in tl.static_range(9):
            near = cell + (place // 3 - 1) * width + place % 3 - 1
            mark = mark | tl.load(reached + first + near, mask=((alike >> place) & 1) > 0, other=0)
        fresh = tl.sum(mark - before, axis=0)
        tl.store(reached + first + cell, mark, mask=inside)
        tl.debug_barrier()  # what a thread has stored is what the others read next


def warps_of(block: int) -> int:
    return max(1, min(32, block // (32 * CELLS)))


def flood(mapped: torch.Tensor, reached: torch.Tensor) -> torch.Tensor:
    """As ``region_growing_numba.flood``, but returned."""
    count, height, width = mapped.shape
    mapped, marks = mapped.contiguous(), reached.int().contiguous()
    block = triton.next_power_of_2(height * width)
    sizes = {"B": block, "num_warps": warps_of(block), "enable_fp_fusion": False}
    spread[(count,)](mapped, marks, height, width, **sizes)
    return marks.bool()
