"""The permutohedral lattice on the CPU, compiled by Numba (the formulas: ``permutohedral.py``).

Values are kept in *planes* of eight classes, (planes, vertices, 8): eight classes of a vertex are one register and
half a cache line, and a plane of a lattice fits into a core's cache.

Blurring is done in place. Along an axis the vertices form chains; walking a chain, the old value of the vertex before
stays in a register, and a vertex without neighbours on the axis is not touched.
"""

# mypy: disable-error-code="no-untyped-def"
# Numba derives the types of a kernel's arguments; its docstring gives them.
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from repro.layers.numba_lanes import (
    LANES,
    entry,
    kernel,
    load,
    nearest,
    spread,
    store,
    where_equal,
    where_less,
)
from repro.layers.permutohedral import Features, neighbour_steps

F = np.float32
HASH = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing


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
            v_0, v_1 = np.int64(offsets[pixel, j]), np.int64(offsets[pixel, j + 1])
            v_2 = np.int64(offsets[pixel, j + 2])
            w_0, w_1 = spread(weights[pixel, j]), spread(weights[pixel, j + 1])
            w_2 = spread(weights[pixel, j + 2])
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


@entry
def build(layout, image):
    """The lattice of an image (pixels, 3) uint8, as the fields of :class:`Lattice`; the spatial one needs no image."""
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
