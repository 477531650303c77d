"""Caffe's layers that move, cut or repeat values: Reshape, Flatten, Slice, Crop, Tile, BatchReindex, Filter, Embed,
Im2col (a file of its name each). Gradients are PyTorch's, which are Caffe's here."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

Pair = tuple[int, ...]  # rows and columns


def reshape(x: torch.Tensor, dims: Sequence[int], *, axis: int = 0, num_axes: int = -1) -> torch.Tensor:
    """``Reshape``: replaces ``num_axes`` axes from ``axis`` on by ``dims``; 0 copies an axis, -1 is what is left.

    A negative ``axis`` counts from behind the last one, -1 being the end. ``num_axes: -1`` takes all to the end.

    >>> reshape(torch.zeros(2, 6, 9, 7), [2, -1], axis=1, num_axes=1).shape
    torch.Size([2, 2, 3, 9, 7])

    Raises:
        ValueError: more than one -1, a 0 for an axis that is not there, sizes that do not multiply to the blob's.
    """
    start = axis if axis >= 0 else x.dim() + axis + 1
    stop = x.dim() if num_axes == -1 else start + num_axes
    if not 0 <= start <= stop <= x.dim():
        raise ValueError(f"axis {axis} and num_axes {num_axes} do not fit a blob of {x.dim()} axes")
    if any(size == 0 and start + i >= x.dim() for i, size in enumerate(dims)):
        raise ValueError(f"dim: 0 copies an axis that a blob of {x.dim()} axes does not have")
    middle = [x.shape[start + i] if size == 0 else size for i, size in enumerate(dims)]
    if middle.count(-1) > 1:
        raise ValueError("at most one dim may be -1")
    if -1 in middle:  # worked out here: PyTorch's -1 looks at the whole blob
        known = torch.Size(size for size in middle if size != -1).numel()
        taken = x.shape[start:stop].numel()
        if known == 0 or taken % known:
            raise ValueError(f"{taken} values do not divide by the other dims, {known}")
        middle[middle.index(-1)] = taken // known
    shape = (*x.shape[:start], *middle, *x.shape[stop:])
    if torch.Size(shape).numel() != x.numel():
        raise ValueError(f"a blob of {tuple(x.shape)} does not reshape to {shape}")
    return x.reshape(shape)


def slices(
    x: torch.Tensor, tops: int, *, axis: int = 1, points: Sequence[int] = ()
) -> tuple[torch.Tensor, ...]:
    """``Slice``: cuts ``axis`` at ``points``, or into ``tops`` equal parts.

    >>> [part.shape[1] for part in slices(torch.zeros(1, 6), 3, points=[1, 4])]
    [1, 3, 2]

    Raises:
        ValueError: points that are not one fewer than the tops or do not rise, an axis that does not divide.
    """
    size = x.shape[axis]
    if not points:
        if size % tops:
            raise ValueError(f"axis {axis} of size {size} does not divide into {tops} tops")
        return x.split(size // tops, dim=axis)
    edges = [0, *points, size]
    if len(points) != tops - 1 or any(low >= high for low, high in itertools.pairwise(edges)):
        raise ValueError(
            f"slice_point {list(points)} does not cut axis {axis} of size {size} into {tops} tops"
        )
    return x.split([high - low for low, high in itertools.pairwise(edges)], dim=axis)


def crop(x: torch.Tensor, like: torch.Tensor, *, axis: int = 2, offsets: Sequence[int] = ()) -> torch.Tensor:
    """``Crop``: cuts x to the size of ``like`` in every axis from ``axis`` on.

    ``offsets`` is empty (0), one for all of these axes, or one for each.

    Raises:
        ValueError: a wrong number of offsets, or a piece that does not lie in x.
    """
    axis %= x.dim()
    cut = range(axis, x.dim())
    if len(offsets) not in (0, 1, len(cut)):
        raise ValueError(f"{len(offsets)} offsets for {len(cut)} axes from axis {axis} on")
    starts = list(offsets) * len(cut) if len(offsets) == 1 else list(offsets) or [0] * len(cut)
    for dim, start in zip(cut, starts, strict=True):
        if start + like.shape[dim] > x.shape[dim]:
            raise ValueError(
                f"axis {dim}: offset {start} and size {like.shape[dim]} exceed the blob's {x.shape[dim]}"
            )
        x = x.narrow(dim, start, like.shape[dim])
    return x


def tile(x: torch.Tensor, tiles: int, *, axis: int = 1) -> torch.Tensor:
    """``Tile``: the blob ``tiles`` times along ``axis``."""
    return torch.cat([x] * tiles, dim=axis)


def batch_reindex(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``BatchReindex``: x[index] along the first axis; ``index`` holds whole numbers, float or integer."""
    return x.index_select(0, index.flatten().long())


def filter_batch(inputs: Sequence[torch.Tensor], selector: torch.Tensor) -> list[torch.Tensor]:
    """``Filter``: the items of each input where ``selector``, one value per item, is not 0."""
    kept = selector.flatten().nonzero().flatten()
    return [x.index_select(0, kept) for x in inputs]


def embed(ids: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``Embed``: the rows of ``weight`` (inputs, outputs) that ``ids`` (any shape) names, plus ``bias`` (outputs)."""
    rows = F.embedding(ids.long(), weight)
    return rows if bias is None else rows + bias


def im2col(
    x: torch.Tensor, kernel: Pair, *, stride: Pair = (1, 1), pad: Pair = (0, 0), dilation: Pair = (1, 1)
) -> torch.Tensor:
    """``Im2col``: (N, C, H, W) to the windows of a convolution, (N, C·kh·kw, H', W')."""
    height, width = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(x.shape[-2:], kernel, stride, pad, dilation, strict=True)
    )
    columns = F.unfold(x, kernel, dilation=dilation, padding=pad, stride=stride)
    return columns.reshape(len(x), -1, height, width)
