"""The dense CRF's mean field on the CPU, compiled by Numba (the formulas: ``mean_field_engine.py``).

Classes are padded to a multiple of eight and kept in planes of eight, (planes, pixels, 8); the unary of a padding
class is -inf, so it never takes part. An iteration goes over the image once, a part of the pixels at a time: slice
both kernels, softmax, splat into the lattices of the next iteration. Then those are blurred. The marginals are thus
never held for more than a part of the image.

Every sum is taken in densecrf's order and the exponential is the one it calls (Eigen's for classes four at a time,
the C library's for those left over), so that on x86-64 the marginals equal its own bit for bit.
Threads share the batch image by image; an image's arithmetic does not depend on their number.
"""

# mypy: disable-error-code="no-untyped-def"
# Numba derives the types of a kernel's arguments; its docstring gives them.
from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from repro.layers.numba_lanes import (
    LANES,
    entry,
    first,
    floor,
    kernel,
    load,
    rotate,
    spread,
    store,
    two_to_the,
    where_less,
)
from repro.layers.permutohedral import Features
from repro.layers.permutohedral_numba import Lattice, blur, build, layout_of, splat

F = np.float32
PART = 4096  # pixels; anything from 512 to 16384 takes the same time
TILE = 32  # pixels whose logits stay in the first-level cache between slice and softmax


@kernel
def exp(x):
    """Eigen's ``pexp``, which is Cephes' ``expf``: 2^n·exp(rest) with a polynomial of degree 7; 0 below -88.3."""
    limit = spread(F(88.3762626647950))
    x = where_less(x, limit, x, limit)
    limit = spread(F(-88.3762626647949))
    x = where_less(limit, x, x, limit)
    n = floor(x * spread(F(1.44269504088896341)) + spread(F(0.5)))
    x = x - n * spread(F(0.693359375))  # log 2, in two parts
    x = x - n * spread(F(-2.12194440e-4))
    y = spread(F(1.9875691500e-4))
    y = y * x + spread(F(1.3981999507e-3))
    y = y * x + spread(F(8.3334519073e-3))
    y = y * x + spread(F(4.1665795894e-2))
    y = y * x + spread(F(1.6666665459e-1))
    y = y * x + spread(F(5.0000001201e-1))
    y = y * (x * x) + x
    return (y + spread(F(1))) * two_to_the(n)


@kernel
def larger(a, b):
    return where_less(a, b, b, a)


@kernel
def softmax(logits, tails, count, classes, q, part, at):
    """Softmax of ``count`` pixels of ``logits`` (planes, TILE, 8) into ``q``, planes of ``part`` floats, at ``at``.

    Step by step over the tile, not pixel by pixel: the steps of one pixel wait for each other. ``tails`` (3 · TILE)
    is scratch space for the exponentials of the last classes % 4 classes.
    """
    planes = logits.size // (TILE * LANES)
    fours, whole = classes // 4 * 4, classes // 8
    for r in range(0, count * LANES, LANES):
        top = load(logits, r)
        for b in range(1, planes):
            top = larger(top, load(logits, b * TILE * LANES + r))
        top = larger(top, rotate(top, 4))
        top = larger(top, rotate(top, 2))
        top = larger(top, rotate(top, 1))
        for b in range(planes):
            store(logits, b * TILE * LANES + r, load(logits, b * TILE * LANES + r) - top)
    last = whole * TILE * LANES + fours % 8  # where the classes begin that no four holds
    for k in range(classes - fours):
        for r in range(count):
            tails[k * TILE + r] = math.exp(logits[last + r * LANES + k])
    for b in range(planes):
        for r in range(b * TILE * LANES, (b * TILE + count) * LANES, LANES):
            store(logits, r, exp(load(logits, r)))
    for k in range(classes - fours):
        for r in range(count):
            logits[last + r * LANES + k] = tails[k * TILE + r]
    # The order of Eigen's sum: even fours and odd fours apart, the two together, the odd one out, the four lanes
    # crosswise, the classes left over.
    for r in range(count):
        total = spread(F(0))
        for b in range(whole):
            total = total + load(logits, (b * TILE + r) * LANES)
        total = total + rotate(total, 4)
        if fours % 8:
            total = total + load(logits, (whole * TILE + r) * LANES)
        total = total + rotate(total, 2)
        total = total + rotate(total, 1)
        divisor = first(total)
        for k in range(classes - fours):
            divisor += tails[k * TILE + r]
        for b in range(planes):
            quotient = load(logits, (b * TILE + r) * LANES) / spread(divisor)
            store(q, b * part + at + r * LANES, quotient)


@kernel
def start(begin, end, source, unary, q):
    """``source`` (classes, pixels) into the planes of ``unary``, and its softmax into ``q``: see ``update``."""
    classes, planes = len(source), len(q)
    logits, tails = np.empty(planes * TILE * LANES, F), np.empty(3 * TILE, F)
    flat_unary, flat_q = unary.reshape(-1), q.reshape(-1)
    for tile in range(begin, end, TILE):
        count = min(TILE, end - tile)
        for k in range(planes * LANES):
            at = k // LANES * TILE * LANES + k % LANES
            for r in range(count):
                logits[at + r * LANES] = source[k, tile + r] if k < classes else -np.inf
        for b in range(planes):
            for r in range(0, count * LANES, LANES):
                store(flat_unary, b * unary.shape[1] + tile * LANES + r, load(logits, b * TILE * LANES + r))
        softmax(logits, tails, count, classes, flat_q, q.shape[1], (tile - begin) * LANES)


@kernel
def update(begin, end, classes, unary, spatial, s_values, s_weight, bilateral, b_values, b_weight, q):
    """``q`` = softmax(unary + weighted, filtered q of both kernels) for the pixels from ``begin`` to ``end``.

    ``unary`` (planes, pixels · 8); ``q`` (planes, some · 8) from pixel ``begin`` on; ``spatial`` and ``bilateral`` as
    :class:`Lattice`, ``s_values`` and ``b_values`` (planes, size) what they filtered, with the kernels' weights.
    """
    planes = len(q)
    logits, tails = np.empty(planes * TILE * LANES, F), np.empty(3 * TILE, F)
    flat_unary, flat_q = unary.reshape(-1), q.reshape(-1)
    s_offsets, s_weights, s_norm, s_alpha, _, _ = spatial
    b_offsets, b_weights, b_norm, b_alpha, _, _ = bilateral
    s_flat, b_flat = s_values.reshape(-1), b_values.reshape(-1)
    # densecrf multiplies the weights by alpha, but for one or two classes the weighted values
    alpha_first = classes > 2
    s_factor, b_factor = (s_alpha, b_alpha) if alpha_first else (F(1), F(1))
    s_after, b_after = spread(s_alpha), spread(b_alpha)
    for tile in range(begin, end, TILE):
        count = min(TILE, end - tile)
        for r in range(count):
            p = tile + r
            s_0, s_1, s_2 = np.int64(s_offsets[p, 0]), np.int64(s_offsets[p, 1]), np.int64(s_offsets[p, 2])
            b_0, b_1, b_2 = np.int64(b_offsets[p, 0]), np.int64(b_offsets[p, 1]), np.int64(b_offsets[p, 2])
            b_3, b_4, b_5 = np.int64(b_offsets[p, 3]), np.int64(b_offsets[p, 4]), np.int64(b_offsets[p, 5])
            u_0, u_1 = spread(s_weights[p, 0] * s_factor), spread(s_weights[p, 1] * s_factor)
            u_2 = spread(s_weights[p, 2] * s_factor)
            w_0, w_1 = spread(b_weights[p, 0] * b_factor), spread(b_weights[p, 1] * b_factor)
            w_2, w_3 = spread(b_weights[p, 2] * b_factor), spread(b_weights[p, 3] * b_factor)
            w_4, w_5 = spread(b_weights[p, 4] * b_factor), spread(b_weights[p, 5] * b_factor)
            for b in range(planes):
                x, y = b * s_values.shape[1], b * b_values.shape[1]
                x_0, x_1 = load(s_flat, x + s_0) * u_0, load(s_flat, x + s_1) * u_1
                x_2 = load(s_flat, x + s_2) * u_2
                y_0, y_1 = load(b_flat, y + b_0) * w_0, load(b_flat, y + b_1) * w_1
                y_2, y_3 = load(b_flat, y + b_2) * w_2, load(b_flat, y + b_3) * w_3
                y_4, y_5 = load(b_flat, y + b_4) * w_4, load(b_flat, y + b_5) * w_5
                if not alpha_first:
                    x_0, x_1, x_2 = x_0 * s_after, x_1 * s_after, x_2 * s_after
                    y_0, y_1, y_2 = y_0 * b_after, y_1 * b_after, y_2 * b_after
                    y_3, y_4, y_5 = y_3 * b_after, y_4 * b_after, y_5 * b_after
                logit = load(flat_unary, b * unary.shape[1] + p * LANES)
                logit = logit + spread(s_weight) * ((x_0 + x_1 + x_2) * spread(s_norm[p]))
                logit = logit + spread(b_weight) * ((y_0 + y_1 + y_2 + y_3 + y_4 + y_5) * spread(b_norm[p]))
                store(logits, (b * TILE + r) * LANES, logit)
        softmax(logits, tails, count, classes, flat_q, q.shape[1], (tile - begin) * LANES)


@kernel
def finish(begin, end, q, out):
    """The planes of ``q`` into ``out`` (classes, pixels)."""
    for k in range(len(out)):
        plane, lane = q[k // LANES], k % LANES
        for pixel in range(begin, end):
            out[k, pixel] = plane[(pixel - begin) * LANES + lane]


@entry
def infer(image, source, spatial, bilateral_layout, s_weight, b_weight, iterations, out):
    """Mean field of an image (pixels, 3): ``source`` and ``out`` (classes, pixels), ``spatial`` a :class:`Lattice`."""
    bilateral = build(bilateral_layout, image)
    classes, pixels = source.shape
    planes, part = -(-classes // LANES), min(PART, pixels)
    s_size, b_size = spatial[5], bilateral[5]
    unary, q = np.empty((planes, pixels * LANES), F), np.empty((planes, part * LANES), F)
    # An iteration reads values[now] and collects values[later] for the next.
    s_values, b_values = np.empty((2, planes, s_size), F), np.empty((2, planes, b_size), F)
    for iteration in range(iterations + 1):
        now, later = iteration % 2, 1 - iteration % 2
        s_later, b_later = s_values[later].reshape(-1), b_values[later].reshape(-1)
        s_later[:] = 0
        b_later[:] = 0
        for begin in range(0, pixels, part):
            end = min(begin + part, pixels)
            if iteration == 0:
                start(begin, end, source, unary, q)
            else:
                kernels = (spatial, s_values[now], s_weight, bilateral, b_values[now], b_weight)
                update(begin, end, classes, unary, *kernels, q)
            if iteration == iterations:
                finish(begin, end, q, out)
            else:
                splat(begin, end, *spatial[:3], q.reshape(-1), q.shape[1], s_later, s_size, planes)
                splat(begin, end, *bilateral[:3], q.reshape(-1), q.shape[1], b_later, b_size, planes)
        if iteration < iterations:
            blur(spatial[4], s_later, s_size)
            blur(bilateral[4], b_later, b_size)


def mean_field_cpu(
    images: np.ndarray,
    unary: np.ndarray,
    spatial: Lattice,
    bilateral: Features,
    weights: tuple[float, float],
    iterations: int,
    threads: int,
) -> np.ndarray:
    """Marginals of a batch.

    Args:
        images: (N, H, W, 3) uint8, contiguous.
        unary: (N, C, H, W) float32, contiguous.
        spatial: lattice of the spatial kernel; ``bilateral``: features of the other.
        weights: of the spatial and of the bilateral kernel.
        threads: at most so many images side by side.

    Returns:
        (N, C, H, W) float32.
    """
    count, classes = unary.shape[:2]
    marginals = np.empty(unary.shape, F)
    sources, outs = unary.reshape(count, classes, -1), marginals.reshape(count, classes, -1)
    common = (spatial, layout_of(bilateral), F(weights[0]), F(weights[1]), iterations)

    def infer_image(n: int) -> None:
        infer(images[n].reshape(-1, 3), sources[n], *common, outs[n])

    if min(threads, count) == 1:
        for n in range(count):
            infer_image(n)
    else:
        with ThreadPoolExecutor(min(threads, count)) as pool:
            list(pool.map(infer_image, range(count)))
    return marginals
