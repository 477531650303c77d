"""The dense CRF's mean field on the CPU, compiled by Numba (the formulas: ``permutohedral.py``, ``mean_field_engine.py``).

Layout. Classes are padded to a multiple of eight and kept in *planes* of eight, (planes, pixels or vertices, 8): eight
classes of a vertex are one register and half a cache line, and a plane of a lattice fits into a core's cache.
The unary of a padding class is -inf, so it never takes part.

A mean-field iteration goes over the image once, a part of the pixels at a time, so that the part's marginals are
still in the cache when they are splatted: slice both kernels, softmax, splat into the lattices of the next iteration.
Then those are blurred, in place: along an axis the vertices form chains, and walking a chain the old value of the
vertex before stays in a register. A vertex without neighbours on an axis is not touched.

Every sum is taken in densecrf's order and the exponential is the one it calls (Eigen's for classes four at a time,
the C library's for those left over), so that on x86-64 the marginals equal its own bit for bit.
Threads share the batch image by image; an image's arithmetic does not depend on their number.
"""

# mypy: disable-error-code="no-untyped-def"
# Numba derives the types of a kernel's arguments; its docstring gives them.
from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from repro.layers.permutohedral import Features, neighbour_steps
from repro.layers.permutohedral_lanes import (
    LANES,
    first,
    floor,
    load,
    nearest,
    rotate,
    spread,
    store,
    two_to_the,
    where_equal,
    where_less,
)

F = np.float32
PART = 4096  # pixels whose marginals, with the vertices they touch, stay in the second-level cache
TILE = 32  # pixels whose logits stay in the first-level cache between slice and softmax
HASH = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, and keep the machine code on disk where there is a place for it."""
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return njit(nogil=True, error_model="numpy")(function)


class Layout(NamedTuple):
    """:class:`Features` as the kernels take them: ``tables`` (d, longest), ``steps`` of ``neighbour_steps``."""

    pixels: int
    points: int
    width: int
    tables: np.ndarray
    lows: np.ndarray
    strides: np.ndarray
    steps: np.ndarray
    alpha: np.float32


class Lattice(NamedTuple):
    """The lattice of one image and one kernel, M vertices.

    Attributes:
        offsets: (pixels, d + 1) int32, where each pixel's vertices begin in a plane: their numbers times 8.
        weights: (pixels, d + 1) float32, their barycentric weights.
        norm: (pixels) float32, 1 / sqrt(K·1).
        alpha: slicing's factor.
        chains: int32, axis after axis the vertices of each chain in order (times 8), those without neighbours left
            out; the absent vertex M stands before, between and after the chains.
        size: floats in a plane, (M + 2)·8. Vertex M is always 0, M + 1 takes what is written to M.
    """

    offsets: np.ndarray
    weights: np.ndarray
    norm: np.ndarray
    alpha: np.float32
    chains: np.ndarray
    size: int


@kernel
def locate(layout, image):
    """Keys and weights (points, d + 1) of an image (pixels, 3); points past its pixels are at the origin."""
    pixels, points, width, tables, lows, strides, _, _ = layout
    d = lows.size
    keys, weights = np.empty((points, d + 1), np.int64), np.empty((points, d + 1), F)
    c = np.empty(d * LANES, F)
    e, v, rest, rank, at = np.empty((5, (d + 1) * LANES), F)
    step = np.empty(d + 1, np.int64)
    zero, one, size, inverse = spread(F(0)), spread(F(1)), spread(F(d + 1)), spread(F(1) / F(d + 1))
    for start in range(0, points, LANES):
        for lane in range(LANES):
            p = start + lane
            inside = p < pixels
            c[lane] = tables[0, p % width] if inside else F(0)
            c[LANES + lane] = tables[1, p // width] if inside else F(0)
            for k in range(2, d):
                c[k * LANES + lane] = tables[k, image[p, k - 2]] if inside else F(0)
        total = zero
        for j in range(d, 0, -1):
            c_j = load(c, (j - 1) * LANES)
            store(e, j * LANES, total - spread(F(j)) * c_j)
            total = total + c_j
        store(e, 0, total)
        excess = zero  # how far the rounded point is out of the plane
        for i in range(0, (d + 1) * LANES, LANES):
            rounded = nearest(inverse * load(e, i))
            excess = excess + rounded
            store(v, i, rounded)
            store(rest, i, load(e, i) - rounded * size)
            store(rank, i, zero)
        for i in range(0, d * LANES, LANES):
            for j in range(i + LANES, (d + 1) * LANES, LANES):
                less = where_less(load(rest, i), load(rest, j), one, zero)
                store(rank, i, load(rank, i) + less)
                store(rank, j, load(rank, j) + (one - less))
        for i in range(0, (d + 1) * LANES, LANES):
            r = load(rank, i) + excess
            back = where_less(r, zero, one, zero) - where_less(r, size, zero, one)
            r = r + back * size
            rounded = load(v, i) + back
            store(v, i, rounded)
            store(rank, i, r)
            weight = (load(e, i) - rounded * size) * inverse
            for s in range(d + 1):
                store(at, s * LANES, where_equal(r, spread(F(s)), weight, load(at, s * LANES)))
        # weights of the vertices with remainder 0 … d, into ``rest``
        store(rest, 0, load(at, d * LANES) + (one - load(at, 0)))
        for s in range(1, d + 1):
            store(rest, s * LANES, load(at, (d - s) * LANES) - load(at, (d - s + 1) * LANES))
        for lane in range(min(LANES, points - start)):
            key = np.int64(0)
            step[np.int64(rank[d * LANES + lane])] = 0
            for i in range(d):
                key += (np.int64(v[i * LANES + lane]) - lows[i]) * strides[i]
                step[np.int64(rank[i * LANES + lane])] = strides[i]
            for s in range(d + 1):
                if s > 0:  # from remainder s - 1 to s the coordinate of rank d - s + 1 takes a step down
                    key += strides[d] - step[d - s + 1]
                keys[start + lane, s] = key
                weights[start + lane, s] = rest[s * LANES + lane]
    return keys, weights


@kernel
def find(table, key, bits):
    """The place of ``key`` in an open hash table of 2^bits keys, -1 where empty: where it is, or would be."""
    place = np.int64((np.uint64(key) * HASH) >> np.uint64(64 - bits))
    while table[place] != key and table[place] >= 0:
        place = (place + 1) & (table.size - 1)
    return place


@kernel
def number(keys, pixels):
    """Number the vertices as they turn up.

    Returns offsets (pixels, d + 1), the vertices' keys, and the hash table (keys, numbers, bits).
    """
    points, corners = keys.shape
    offsets = np.empty((points, corners), np.int32)
    bits, count = 10, 0
    table, numbers = np.full(1 << bits, -1, np.int64), np.empty(1 << bits, np.int32)
    vertices = np.empty(1 << bits, np.int64)
    for p in range(points):
        for j in range(corners):
            key = keys[p, j]
            if p > 0 and key == keys[p - 1, j]:  # neighbouring pixels often share vertices
                offsets[p, j] = offsets[p - 1, j]
                continue
            place = find(table, key, bits)
            if table[place] < 0:
                if 2 * count >= table.size:
                    bits += 1
                    table, numbers = np.full(1 << bits, -1, np.int64), np.empty(1 << bits, np.int32)
                    for vertex in range(count):
                        place = find(table, vertices[vertex], bits)
                        table[place], numbers[place] = vertices[vertex], vertex
                    more = np.empty(1 << bits, np.int64)
                    more[:count] = vertices[:count]
                    vertices = more
                    place = find(table, key, bits)
                table[place], numbers[place] = key, count
                vertices[count] = key
                count += 1
            offsets[p, j] = numbers[place] * LANES
    return offsets[:pixels], vertices[:count], table, numbers, bits


@kernel
def link(vertices, table, numbers, bits, steps, remainder_stride):
    """The chains of :class:`Lattice`."""
    count, axes = vertices.size, steps.shape[1]
    chains = np.empty(axes * (count + count // 2) + 2, np.int32)
    after, leads = np.empty(count, np.int32), np.empty(count, np.bool_)
    chains[0] = count * LANES
    length = 1
    for axis in range(axes):
        after[:] = -1
        leads[:] = True
        for vertex in range(count):
            key = vertices[vertex]
            before = key + steps[1 if key >= remainder_stride else 0, axis]
            place = find(table, before, bits)
            if table[place] == before:
                after[numbers[place]] = vertex
                leads[vertex] = False
        for vertex in range(count):
            if leads[vertex] and after[vertex] >= 0:
                current = vertex
                while current >= 0:
                    chains[length] = current * LANES
                    length += 1
                    current = after[current]
                chains[length] = count * LANES
                length += 1
    return chains[:length].copy()


@kernel
def splat(begin, end, offsets, weights, norm, q, part, values, size, planes):
    """Add the pixels from ``begin`` to ``end``, times ``norm``, to their vertices.

    ``q``: planes of ``part`` floats from pixel ``begin`` on; ``values``: planes of ``size`` floats; both flat.
    """
    for pixel in range(begin, end):
        n = spread(norm[pixel])
        for j in range(0, offsets.shape[1], 3):  # three corners or six
            v_0, v_1, v_2 = (
                np.int64(offsets[pixel, j]),
                np.int64(offsets[pixel, j + 1]),
                np.int64(offsets[pixel, j + 2]),
            )
            w_0, w_1, w_2 = (
                spread(weights[pixel, j]),
                spread(weights[pixel, j + 1]),
                spread(weights[pixel, j + 2]),
            )
            for b in range(planes):
                x = load(q, b * part + (pixel - begin) * LANES) * n
                sum_0 = load(values, b * size + v_0) + w_0 * x
                sum_1 = load(values, b * size + v_1) + w_1 * x
                sum_2 = load(values, b * size + v_2) + w_2 * x
                store(values, b * size + v_0, sum_0)
                store(values, b * size + v_1, sum_1)
                store(values, b * size + v_2, sum_2)


@kernel
def blur(chains, values, size):
    """Blur the planes of ``values`` (flat, each of ``size`` floats) along every axis, in place.

    A plane's last vertex but one is the absent neighbour; the sum at it goes to the last, which nobody reads.
    """
    half = spread(F(0.5))
    for plane in range(0, values.size, size):
        before = current = spread(F(0))
        for i in range(chains.size - 1):
            after = load(values, plane + np.int64(chains[i + 1]))
            vertex = np.int64(chains[i])
            if vertex == size - 2 * LANES:
                vertex += LANES
            store(values, plane + vertex, current + half * (before + after))
            before, current = current, after


@kernel
def build(layout, image):
    """The lattice of an image (pixels, 3) uint8, as the fields of :class:`Lattice`; the spatial one ignores the image."""
    pixels, alpha = layout.pixels, layout.alpha
    keys, weights = locate(layout, image)
    offsets, vertices, table, numbers, bits = number(keys, pixels)
    weights = weights[:pixels]
    chains = link(vertices, table, numbers, bits, layout.steps, layout.strides[-1])
    ones, norm = np.ones(pixels * LANES, F), np.ones(pixels, F)
    values = np.zeros((vertices.size + 2) * LANES, F)
    splat(0, pixels, offsets, weights, norm, ones, ones.size, values, values.size, 1)
    blur(chains, values, values.size)
    for p in range(pixels):
        total = F(0)
        for j in range(offsets.shape[1]):
            total += weights[p, j] * values[offsets[p, j]] * alpha
        norm[p] = F(1 / math.sqrt(total + 1e-20))
    return offsets, weights, norm, alpha, chains, values.size


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
    """Softmax of ``count`` pixels of ``logits`` (planes, TILE, 8) into ``q``, planes of ``part`` floats, from ``at`` on.

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
                x_0, x_1, x_2 = (
                    load(s_flat, x + s_0) * u_0,
                    load(s_flat, x + s_1) * u_1,
                    load(s_flat, x + s_2) * u_2,
                )
                y_0, y_1, y_2 = (
                    load(b_flat, y + b_0) * w_0,
                    load(b_flat, y + b_1) * w_1,
                    load(b_flat, y + b_2) * w_2,
                )
                y_3, y_4, y_5 = (
                    load(b_flat, y + b_3) * w_3,
                    load(b_flat, y + b_4) * w_4,
                    load(b_flat, y + b_5) * w_5,
                )
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


@kernel
def infer(image, source, spatial, bilateral_layout, s_weight, b_weight, iterations, out):
    """Mean field of one image: ``image`` (pixels, 3), ``source`` and ``out`` (classes, pixels), ``spatial`` a lattice."""
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


def layout_of(features: Features) -> Layout:
    tables = np.zeros((features.dimension, max(len(table) for table in features.tables)), F)
    for row, table in zip(tables, features.tables, strict=True):
        row[: len(table)] = table
    steps = neighbour_steps(features.strides)
    fixed = (features.pixels, features.points, features.width)
    return Layout(*fixed, tables, features.lows, features.strides, steps, features.alpha)


def spatial_lattice(features: Features) -> Lattice:
    """The lattice of the spatial kernel, the same for every image of a size."""
    return Lattice(*build(layout_of(features), np.empty((0, 3), np.uint8)))


def mean_field_numba(
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
