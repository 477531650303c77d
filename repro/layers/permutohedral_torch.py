"""The dense CRF's mean field in PyTorch operations, on any device (the formulas: ``mean_field_engine.py``).

Nothing waits for the device: the vertices, whose number only the device knows, are held in arrays of the largest
number there can be, one for every corner of every pixel. They are numbered by sorting the keys of all corners; the
sort is stable, so each vertex then has its corners in a row, in the order of the pixels, and sums them in that order.
No sum depends on the order in which threads arrive. Its rounding is densecrf's, on every device.

A batch is one lattice, the image's number being a part of the key. Pixels are laid out (pixels, images, classes): the
spatial lattice, the same for all, sees (pixels, images · classes), the bilateral one (pixels · images, classes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import NamedTuple, Protocol

import numpy as np
import torch

from repro.layers.permutohedral import KEY_BITS, Features, neighbour_steps

NO_KEY = 2**KEY_BITS
# 2^(r/32) = 1 + LINEAR·r + SQUARE·r² + CUBIC·r³, |r| <= 1/2, as the C library rounds it
EXP2_LINEAR = float.fromhex("0x1.62e42ff0c52d6p-1") / 32
EXP2_SQUARE = float.fromhex("0x1.ebfce50fac4f3p-3") / 32**2
EXP2_CUBIC = float.fromhex("0x1.c6af84b912394p-5") / 32**3


class Geometry(NamedTuple):
    """:class:`Features` on a device.

    Attributes:
        features: themselves.
        tables: as there.
        strides: (d + 1) int64, with 0 for the last axis, which has no digit.
        steps: (2, d + 1) int64, ``neighbour_steps``.
        roots: (32) float64, 2^(i/32), for the exponential.
    """

    features: Features
    tables: tuple[torch.Tensor, ...]
    strides: torch.Tensor
    steps: torch.Tensor
    roots: torch.Tensor


class TorchLattice(NamedTuple):
    """The lattice of one kernel over R rows of values, S corners and M vertices.

    Attributes:
        offsets, weights: (R, d + 1) int64 and float32, each row's vertices and barycentric weights.
        starts, rows, shares: vertex v collects ``shares[k]`` of row ``rows[k]``, starts[v] <= k < starts[v + 1];
            (M + 2) int64, (S) int64, (S) float32.
        neighbours: (d + 1, 2, M + 1) int64, the vertices before and after along each axis; M, always 0, if absent.
        norm: (R, 1) float32, 1 / sqrt(K·1).
        alpha: slicing's factor, a float32.
        present: (1) int64, the number of vertices that there are; those from there to M are none's.
    """

    offsets: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    rows: torch.Tensor
    shares: torch.Tensor
    neighbours: torch.Tensor
    norm: torch.Tensor
    alpha: float
    present: torch.Tensor


class Operations(Protocol):
    """What an iteration consists of."""

    def splat_and_blur(self, lattice: TorchLattice, q: torch.Tensor, classes: int) -> torch.Tensor: ...

    def update(
        self,
        unary: torch.Tensor,
        roots: torch.Tensor,
        filtered: Sequence[tuple[TorchLattice, torch.Tensor, float]],
    ) -> torch.Tensor: ...


def geometry(features: Features, device: torch.device) -> Geometry:
    """Copy a kernel's features to a device."""
    tables = tuple(torch.from_numpy(table).to(device) for table in features.tables)
    strides = torch.tensor([*features.strides[:-1].tolist(), 0], device=device)
    steps = torch.from_numpy(neighbour_steps(features.strides)).to(device)
    roots = torch.tensor([2 ** (i / 32) for i in range(32)], dtype=torch.float64, device=device)
    return Geometry(features, tables, strides, steps, roots)


def locate(geometry: Geometry, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and weights, both (points, images, d + 1), of ``pictures`` (pixels, images, 3) uint8.

    One operation per rounding: a fused multiply-add, or a division by a Python number, which CUDA turns into a
    product, would move points across the borders of simplices.
    """
    features, tables, strides, _, _ = geometry
    d, pixels, images = features.dimension, features.pixels, pictures.shape[1]
    size = (features.height, features.width, images)
    x, y = tables[0][None, :, None].expand(size), tables[1][:, None, None].expand(size)
    colours = [table[pictures[..., k].long()] for k, table in enumerate(tables[2:])]
    c = torch.stack([x.reshape(pixels, images), y.reshape(pixels, images), *colours])
    c = torch.cat([c, c.new_zeros(d, features.points - pixels, images)], dim=1)
    total, elevated = torch.zeros_like(c[0]), []
    for j in range(d, 0, -1):
        elevated.append(total - c[j - 1] * j)
        total = total + c[j - 1]
    e = torch.stack([total, *reversed(elevated)], dim=-1)
    inverse = float(np.float32(1) / np.float32(d + 1))
    v = (e * inverse).round()
    rest = e - v * (d + 1)
    less = rest.unsqueeze(-1) < rest.unsqueeze(-2)  # [i, j]: i before j
    rank = less.triu(1).sum(-1) + (~less).transpose(-1, -2).tril(-1).sum(-1) + v.sum(-1, keepdim=True).long()
    back = (rank < 0).long() - (rank > d).long()
    rank, v = rank + back * (d + 1), v + back
    order = rank.argsort(dim=-1)  # the coordinate of rank 0, 1, …
    falling = ((e - v * (d + 1)) * inverse).gather(-1, order).flip(-1)
    first = falling[..., :1] + (1 - falling[..., -1:])
    weights = torch.cat([first, falling[..., 1:] - falling[..., :-1]], dim=-1)
    base = (v.long() * strides).sum(-1) - int((features.lows * features.strides[:d]).sum())
    base = base + torch.arange(images, device=base.device) * features.keys
    # from remainder r - 1 to r the coordinate of rank d - r + 1 takes a step down
    steps = int(features.strides[d]) - strides[order].flip(-1)[..., :-1]
    keys = torch.cat([torch.zeros_like(steps[..., :1]), steps.cumsum(-1)], dim=-1) + base.unsqueeze(-1)
    return keys, weights


def find_neighbours(geometry: Geometry, vertices: torch.Tensor) -> torch.Tensor:
    """``neighbours`` of :class:`TorchLattice` for the sorted keys ``vertices`` (M)."""
    features, absent = geometry.features, len(vertices)
    remainder = vertices % features.keys // int(features.strides[-1])
    wrapping, plain = geometry.steps.unsqueeze(-1)
    before = vertices + torch.where(remainder == 0, wrapping, plain)
    after = vertices - torch.where(remainder == features.dimension, wrapping, plain)
    wanted = torch.stack([before, after], dim=1)
    place = torch.searchsorted(vertices, wanted).clamp_max(absent - 1)
    return torch.nn.functional.pad(
        torch.where(vertices[place] == wanted, place, absent), (0, 1), value=absent
    )


def build(geometry: Geometry, pictures: torch.Tensor, *, trim: bool = False) -> TorchLattice:
    """The lattice of ``pictures`` (pixels, images, 3) uint8, of which the spatial kernel reads only the shape.

    Args:
        trim: leave out what no vertex needs. It reads the number of vertices, so it is for lattices on the CPU.

    Raises:
        ValueError: more images than the keys have room for.
    """
    features, images = geometry.features, pictures.shape[1]
    if images * features.keys >= NO_KEY:
        raise ValueError(f"dense CRF: no room for {images} images in a lattice's keys; take fewer at a time")
    corners, used = features.dimension + 1, features.pixels * images
    keys, weights = locate(geometry, pictures)
    keys, weights = keys.flatten(), weights.flatten()
    ordered, corner = keys.sort(stable=True)
    fresh = torch.ones_like(ordered)
    fresh[1:] = ordered[1:] != ordered[:-1]
    number = fresh.cumsum(0) - 1
    count = int(number[-1]) + 1 if trim else len(keys)
    vertices = torch.full_like(keys, NO_KEY).scatter_(0, number, ordered)[:count]
    offsets = torch.empty_like(keys).scatter_(0, corner, number)[: used * corners].view(used, corners)
    rows = corner // corners
    shares = torch.where(rows < used, weights[corner], 0)  # the points at the origin have no values
    lattice = TorchLattice(
        offsets=offsets,
        weights=weights[: used * corners].view(used, corners),
        starts=torch.searchsorted(number, torch.arange(count + 2, device=keys.device)),
        rows=torch.where(rows < used, rows, 0),
        shares=shares,
        neighbours=find_neighbours(geometry, vertices),
        norm=weights.new_ones(used, 1),
        alpha=float(features.alpha),
        present=number[-1:] + 1,
    )
    total = collect(lattice, splat_and_blur(lattice, lattice.norm, 1), 1).double()
    return lattice._replace(norm=(1 / (total + 1e-20).sqrt()).float())


def splat_and_blur(lattice: TorchLattice, q: torch.Tensor, classes: int) -> torch.Tensor:
    """Splat ``q`` (R, images · classes or classes), times the norm, and blur: (M + 1, the same)."""
    contributions = (q * lattice.norm)[lattice.rows] * lattice.shares.unsqueeze(1)
    values = torch.segment_reduce(
        contributions, "sum", offsets=lattice.starts, axis=0, unsafe=True, initial=0
    )
    for sides in lattice.neighbours:
        before, after = values[sides]
        values = values + (before + after) * 0.5
    return values


def collect(lattice: TorchLattice, values: torch.Tensor, classes: int) -> torch.Tensor:
    """Slice ``values`` (M + 1, columns): (R, columns). densecrf multiplies by alpha last for one or two classes."""
    weights = lattice.weights.unsqueeze(-1)
    parts = values[lattice.offsets]
    parts = parts * (weights * lattice.alpha) if classes > 2 else parts * weights * lattice.alpha
    return reduce(add, parts.unbind(1))


def eigen_exp(x: torch.Tensor) -> torch.Tensor:
    """Eigen's ``pexp``, which is Cephes' ``expf``: 2^n·exp(rest) with a polynomial of degree 7; 0 below -88.3."""
    x = x.clamp(-88.3762626647949, 88.3762626647950)
    n = (x * 1.44269504088896341 + 0.5).floor()
    x = x - n * 0.693359375  # log 2, in two parts
    x = x - n * -2.12194440e-4
    y = torch.full_like(x, 1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = y * x + coefficient
    y = y * (x * x) + x
    return (y + 1) * ((n.int() + 127) << 23).view(torch.float32)


def libm_exp(x: torch.Tensor, roots: torch.Tensor) -> torch.Tensor:
    """The C library's ``expf`` (glibc from 2.28 on, musl, FreeBSD) for x <= 0, in double precision: 2^(k/32)·2^r."""
    scaled = x.double().clamp_min(-104) * (32 / math.log(2))  # exp(-104) is 0 in float32
    k = scaled.round()
    r = scaled - k
    k = k.long()
    power = ((k >> 5) + 1023 << 52).view(torch.float64)
    y = (r * EXP2_CUBIC + EXP2_SQUARE) * (r * r) + (r * EXP2_LINEAR + 1)
    return (y * (roots[k & 31] * power)).float()


def softmax(logits: torch.Tensor, roots: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension with Eigen's exponentials, in the order of Eigen's sum."""
    x = logits - logits.amax(dim=-1, keepdim=True)
    fours = x.shape[-1] // 4
    tail = libm_exp(x[..., 4 * fours :], roots)
    exponentials = torch.cat([eigen_exp(x[..., : 4 * fours]), tail], dim=-1)
    terms = list(tail.unbind(-1))
    if fours:  # even fours and odd fours apart, the two together, the odd one out, the four lanes crosswise
        lanes = list(exponentials[..., : 4 * fours].split(4, dim=-1))
        odd_one = [lanes.pop()] if fours % 2 else []
        lanes = [reduce(add, lanes[side::2]) for side in range(min(2, len(lanes)))]
        lane = reduce(add, lanes + odd_one)
        terms.insert(0, (lane[..., 0] + lane[..., 2]) + (lane[..., 1] + lane[..., 3]))
    return exponentials / reduce(add, terms).unsqueeze(-1)


def update(
    unary: torch.Tensor, roots: torch.Tensor, filtered: Sequence[tuple[TorchLattice, torch.Tensor, float]]
) -> torch.Tensor:
    """softmax(unary + weighted messages) of ``unary`` (pixels, images, C); ``filtered``: lattice, values, weight."""
    logits = unary
    for lattice, values, weight in filtered:
        message = collect(lattice, values, unary.shape[-1]) * lattice.norm
        logits = logits + (message * weight).view_as(unary)
    return softmax(logits, roots)


def mean_field_torch(
    images: torch.Tensor,
    unary: torch.Tensor,
    spatial: TorchLattice,
    bilateral: Geometry,
    weights: tuple[float, float],
    iterations: int,
    operations: Operations,
) -> torch.Tensor:
    """Marginals of a batch.

    Args:
        images: (N, H, W, 3) uint8.
        unary: (N, C, H, W) float32, on the same device.
        spatial: lattice of the spatial kernel for one image; ``bilateral``: geometry of the other.
        weights: of the spatial and of the bilateral kernel.
        operations: this module or ``permutohedral_triton``: whose ``splat_and_blur`` and ``update``.

    Returns:
        (N, C, H, W) float32.
    """
    count, classes, height, width = unary.shape
    lattice = build(bilateral, images.permute(1, 2, 0, 3).reshape(height * width, count, 3))
    unary = unary.permute(2, 3, 0, 1).reshape(height * width, count, classes).contiguous()
    q = operations.update(unary, bilateral.roots, [])
    for _ in range(iterations):
        filtered = [
            (kernel, operations.splat_and_blur(kernel, q.view(len(kernel.norm), -1), classes), weight)
            for kernel, weight in zip((spatial, lattice), weights, strict=True)
        ]
        q = operations.update(unary, bilateral.roots, filtered)
    return q.view(height, width, count, classes).permute(2, 3, 0, 1).contiguous()
