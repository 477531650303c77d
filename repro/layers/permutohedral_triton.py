"""The dense CRF's mean field in Triton, on CUDA: the iteration of ``permutohedral_torch.py`` in twelve launches.

The lattice is built by that module; here are its splat, blur, slice and softmax, each fused into one kernel, which
touch only the vertices that there are: the kernels read their number from the device. A vertex's sum is taken by one
program in the order of the pixels, loads ahead of additions; products are not fused with sums, and the softmax adds up
in Eigen's order, so that the result is the same as on the CPU.

With ``TRITON_INTERPRET=1`` the kernels run on CPU tensors, which is how they are tested without a GPU.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton derives the types of a kernel's arguments.
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from repro.layers.permutohedral_torch import EXP2_CUBIC, EXP2_LINEAR, EXP2_SQUARE, TorchLattice

PROGRAMS = 8192  # at most, each taking vertices in turn: 64 for each of a large GPU's 132 multiprocessors
VERTICES = 4  # of a program at a time, fewer where there are many classes:
LANES = 64  # what a program has loaded ahead must fit into its registers
AHEAD = 16  # contributions loaded before the first is added
PIXELS = 4
CUBIC, SQUARE, LINEAR = (tl.constexpr(value) for value in (EXP2_CUBIC, EXP2_SQUARE, EXP2_LINEAR))
ROUNDING = tl.constexpr(1.5 * 2.0**52)  # added and subtracted, it leaves a double rounded, ties to even
IN_32ND = tl.constexpr(46.16624130844683)  # 32 / log 2


@triton.jit
def splat(
    q, norm, starts, rows, shares, count, values, columns, classes,
    V: tl.constexpr, L: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """values[v] = Σ share·(q·norm) over v's contributions, ``classes`` of the ``columns`` from program_id(1) on."""
    lane = tl.arange(0, L)
    column = tl.program_id(1) * classes + lane
    used = lane < classes
    total = tl.load(count)
    for first in range(tl.program_id(0) * V, total, tl.num_programs(0) * V):
        vertex = first + tl.arange(0, V).to(tl.int64)
        begin = tl.load(starts + vertex, mask=vertex < total, other=0)
        length = tl.load(starts + vertex + 1, mask=vertex < total, other=0) - begin
        value = tl.zeros((V, L), tl.float32)
        for k in range(0, tl.max(length, axis=0), A):
            for ahead in tl.static_range(A):
                more = k + ahead < length
                row = tl.load(rows + begin + k + ahead, mask=more, other=0)
                share = tl.load(shares + begin + k + ahead, mask=more, other=0.0)
                factor = tl.load(norm + row, mask=more, other=0.0)
                x = tl.load(q + row[:, None] * columns + column, mask=more[:, None] & used, other=0.0)
                value = value + share[:, None] * (x * factor[:, None])
        tl.store(values + vertex[:, None] * columns + column, value, mask=(vertex < total)[:, None] & used)


@triton.jit(do_not_specialize=["axis"])
def blur(
    values, blurred, neighbours, axis, absent, count, columns, classes, V: tl.constexpr, L: tl.constexpr
):  # fmt: skip
    """One axis: blurred = values + (values[before] + values[after]) / 2; the value of ``absent`` counts as 0."""
    lane = tl.arange(0, L)
    column = tl.program_id(1) * classes + lane
    sides = neighbours + axis.to(tl.int64) * 2 * (absent + 1)
    total = tl.load(count)
    for first in range(tl.program_id(0) * V, total, tl.num_programs(0) * V):
        vertex = first + tl.arange(0, V).to(tl.int64)
        mask = (vertex < total)[:, None] & (lane < classes)
        before = tl.load(sides + vertex, mask=vertex < total, other=0)[:, None]
        after = tl.load(sides + (absent + 1) + vertex, mask=vertex < total, other=0)[:, None]
        value_1 = tl.load(values + before * columns + column, mask=mask & (before != absent), other=0.0)
        value_2 = tl.load(values + after * columns + column, mask=mask & (after != absent), other=0.0)
        place = vertex[:, None] * columns + column
        own = tl.load(values + place, mask=mask, other=0.0)
        tl.store(blurred + place, own + (value_1 + value_2) * 0.5, mask=mask)


@triton.jit
def collect(
    row, inside, offsets, weights, norm, values, alpha, columns, column, used,
    CORNERS: tl.constexpr, C: tl.constexpr, R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Slice: the rows' messages, times the norm."""
    message = tl.zeros((R, L), tl.float32)
    for corner in tl.static_range(CORNERS):
        vertex = tl.load(offsets + row * CORNERS + corner, mask=inside, other=0)
        weight = tl.load(weights + row * CORNERS + corner, mask=inside, other=0.0)
        value = tl.load(values + vertex[:, None] * columns + column, mask=used, other=0.0)
        if C > 2:  # noqa: SIM108 (a branch of the compiler, not a value)
            message = message + value * (weight * alpha)[:, None]
        else:
            message = message + (value * weight[:, None]) * alpha
    return message * tl.load(norm + row, mask=inside, other=0.0)[:, None]


@triton.jit
def eigen_exp(x):
    x = tl.minimum(tl.maximum(x, -88.3762626647949), 88.3762626647950)
    n = tl.floor(x * 1.44269504088896341 + 0.5)
    x = x - n * 0.693359375
    x = x - n * -2.12194440e-4
    y = x * 1.9875691500e-4 + 1.3981999507e-3
    y = y * x + 8.3334519073e-3
    y = y * x + 4.1665795894e-2
    y = y * x + 1.6666665459e-1
    y = y * x + 5.0000001201e-1
    y = y * (x * x) + x
    return (y + 1.0) * ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def libm_exp(x, roots):
    scaled = tl.maximum(x, -104.0).to(tl.float64) * IN_32ND
    k = (scaled + ROUNDING) - ROUNDING
    r = scaled - k
    k = k.to(tl.int64)
    power = (((k >> 5) + 1023) << 52).to(tl.float64, bitcast=True)
    y = (r * CUBIC + SQUARE) * (r * r) + (r * LINEAR + 1.0)
    return (y * (tl.load(roots + (k & 31)) * power)).to(tl.float32)


@triton.jit
def lane_of(x, index, which: tl.constexpr):
    """x (R, L)[:, which], exactly: the other terms are 0."""
    return tl.sum(tl.where(index == which, x, 0.0), axis=1)


@triton.jit
def update_rows(
    unary, q, roots, rows, images, spatial_weight, weight,
    s_offsets, s_weights, s_norm, s_values, s_alpha, b_offsets, b_weights, b_norm, b_values, b_alpha,
    MESSAGES: tl.constexpr, C: tl.constexpr, R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """q = softmax(unary + weighted messages), rows (pixels · images, C); without ``MESSAGES`` softmax(unary)."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    lane = tl.arange(0, L)[None, :]
    inside = row < rows
    used = inside[:, None] & (lane < C)
    logits = tl.load(unary + row[:, None] * C + lane, mask=used, other=float("-inf"))
    if MESSAGES:
        columns, pixel = images * C, row // images
        column = (row % images)[:, None] * C + lane
        message = collect(
            pixel, inside, s_offsets, s_weights, s_norm, s_values, s_alpha, columns, column, used, 3, C, R, L
        )
        logits = logits + spatial_weight * message
        message = collect(
            row, inside, b_offsets, b_weights, b_norm, b_values, b_alpha, C, lane, used, 6, C, R, L
        )
        logits = logits + weight * message
    x = logits - tl.max(logits, axis=1)[:, None]
    FOURS: tl.constexpr = C // 4
    e = tl.where(lane < 4 * FOURS, eigen_exp(x), 0.0)
    if C > 4 * FOURS:
        e = tl.where((lane >= 4 * FOURS) & (lane < C), libm_exp(x, roots), e)
    # Eigen's order: even fours and odd fours apart, the two together, the odd one out, the four lanes crosswise
    eights = tl.reshape(e, (R, L // 8, 8))
    eight = tl.arange(0, L // 8)[None, :, None]
    place = tl.arange(0, 8)[None, :]
    pairs = tl.zeros((R, 8), tl.float32)
    for k in tl.static_range(C // 8):
        pairs = pairs + tl.sum(tl.where(eight == k, eights, 0.0), axis=1)
    single = tl.sum(tl.where(eight == FOURS // 2, eights, 0.0), axis=1)
    if FOURS % 2 == 0:
        single = tl.zeros((R, 8), tl.float32)
    sum_0 = lane_of(pairs, place, 0) + lane_of(pairs, place, 4) + lane_of(single, place, 0)
    sum_1 = lane_of(pairs, place, 1) + lane_of(pairs, place, 5) + lane_of(single, place, 1)
    sum_2 = lane_of(pairs, place, 2) + lane_of(pairs, place, 6) + lane_of(single, place, 2)
    sum_3 = lane_of(pairs, place, 3) + lane_of(pairs, place, 7) + lane_of(single, place, 3)
    total = (sum_0 + sum_2) + (sum_1 + sum_3)
    for k in tl.static_range(4 * FOURS, C):
        total = total + lane_of(e, lane, k)
    tl.store(q + row[:, None] * C + lane, tl.div_rn(e, tl.broadcast_to(total[:, None], (R, L))), mask=used)


def lanes_of(classes: int) -> int:
    return max(8, triton.next_power_of_2(classes))


def vertices_at_once(lanes: int) -> int:
    """Of a program of splat or blur: a power of two."""
    return max(1, min(VERTICES, LANES // lanes))


def splat_and_blur(lattice: TorchLattice, q: torch.Tensor, classes: int) -> torch.Tensor:
    """As in ``permutohedral_torch.py``; rows from the number of vertices to M are left undefined."""
    columns, (axes, _, size) = q.shape[1], lattice.neighbours.shape
    values, blurred = q.new_empty(2, size, columns)
    lanes = lanes_of(classes)
    vertices = vertices_at_once(lanes)
    grid = (min(PROGRAMS, triton.cdiv(size - 1, vertices)), columns // classes)
    sizes = {"V": vertices, "L": lanes, "num_warps": 1, "enable_fp_fusion": False}
    contributions = (lattice.starts, lattice.rows, lattice.shares, lattice.present)
    splat[grid](q, lattice.norm, *contributions, values, columns, classes, A=AHEAD, **sizes)
    for axis in range(axes):
        along = (lattice.neighbours, axis, size - 1, lattice.present)
        blur[grid](values, blurred, *along, columns, classes, **sizes)
        values, blurred = blurred, values
    return values


def update(
    unary: torch.Tensor, roots: torch.Tensor, filtered: Sequence[tuple[TorchLattice, torch.Tensor, float]]
) -> torch.Tensor:
    """As in ``permutohedral_torch.py``."""
    pixels, images, classes = unary.shape
    q = torch.empty_like(unary)
    kernels: list[Any] = []
    for lattice, values, _ in filtered:
        kernels += [lattice.offsets, lattice.weights, lattice.norm, values, lattice.alpha]
    kernels = kernels or [unary, unary, unary, unary, 1.0] * 2
    weights = [weight for _, _, weight in filtered] or [0.0, 0.0]
    grid = (triton.cdiv(pixels * images, PIXELS),)
    sizes = {"C": classes, "R": PIXELS, "L": lanes_of(classes), "num_warps": 1, "enable_fp_fusion": False}
    update_rows[grid](
        unary, q, roots, pixels * images, images, *weights, *kernels, MESSAGES=len(filtered) > 0, **sizes
    )
    return q
