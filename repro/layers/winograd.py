"""3x3 convolutions on the CPU by Winograd's method, with exact adjoints.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. A tile of 4x4 outputs reads 6x6
inputs d:

    forward     V = Bᵀ d B     M = V · U with U = G g Gᵀ, for each of the 36 points a matrix product     Y = Aᵀ M A
    backward    dM = A dY Aᵀ   dV = dM · Uᵀ   dd = B dV Bᵀ   dU = Vᵀ · dM, summed over tiles   dg = Gᵀ dU G

That is 36 multiplications for 16 outputs where the direct sum takes 144. A map's rest is cut into tiles of 3 and 2,
which use the first 5 and 4 of the 6 points in a dimension. A dilation d splits the map into d² phases, each an
undilated convolution; a phase of two or one pixels in a dimension has only zeros around it and takes 3 or 1
multiplications.

Float32 differs from the direct sum by about 1e-5 of the largest output (512 channels; the direct sum itself by 1e-6).
The transforms are in ``winograd_numba.py``; the products are PyTorch's. Their result depends on the number of threads
as far as PyTorch's products do; the transforms' does not.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from repro.layers import winograd_numba as kernels
from repro.layers.winograd_numba import COUNTS, KINDS, LANES
from repro.layers.winograd_plan import Part, Plan, plan_of, segments

INPUT, OUTPUT = 0, 1
BUFFER_FLOATS = 16 << 20  # of the transformed tiles at a time, about


def winograd_conv2d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dilation: int = 1
) -> torch.Tensor:
    """``conv2d(x, weight, bias, padding=dilation, dilation=dilation)`` of a 3x3 kernel with stride 1.

    Args:
        x: (N, C, H, W) float32 on the CPU, C a multiple of 8; channels-last is read without a copy.
        weight: (K, C, 3, 3) float32, K a multiple of 8.
        bias: (K) float32.

    Returns:
        (N, K, H, W), channels-last; differentiable once in all three.

    >>> x, weight = torch.ones(1, 8, 5, 5), torch.ones(8, 8, 3, 3)
    >>> winograd_conv2d(x, weight)[0, 0, 2].round().tolist()
    [48.0, 72.0, 72.0, 72.0, 48.0]
    """
    result: torch.Tensor = _Winograd.apply(x, weight, bias, dilation)
    return result


def fast_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    pad: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """``F.conv2d`` with the same arguments, by Winograd's method where it can and where that takes less work."""
    if (
        qualifies(weight, stride, pad, dilation, groups)
        and pays(tuple(x.shape), len(weight), dilation[0])
        and _computes(x)
    ):
        return winograd_conv2d(x, weight, bias, dilation[0])
    return F.conv2d(x, weight, bias, stride, pad, dilation, groups)


def qualifies(
    weight: torch.Tensor, stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Whether a convolution is one of 3x3 with stride 1 that keeps its input's size, with whole vectors of channels."""
    return (
        (tuple(weight.shape[2:]), tuple(stride), groups) == ((3, 3), (1, 1), 1)
        and tuple(pad) == tuple(dilation)
        and dilation[0] == dilation[1]
        and weight.shape[1] % LANES == weight.shape[0] % LANES == 0
        and weight.dtype == torch.float32
    )


def _computes(x: torch.Tensor) -> bool:
    """Whether ``x`` has values here: not on another device, nor in a compiler's or an exporter's trace."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and x.dtype == torch.float32 and not traced


@lru_cache(maxsize=256)
def pays(shape: tuple[int, ...], outputs: int, dilation: int) -> bool:
    """The cost rule: multiplications of the direct sum, against the products' and what takes as long as so many more:
    32 a channel at each point of a tile for the transforms, 100 an element of U."""
    count, inputs, height, width = shape
    places, panels = count, 1
    for size in (height, width):
        kinds = segments(size, dilation)[:, 1]
        places *= int(COUNTS[kinds].sum())
        panels *= len({point for kind in set(kinds.tolist()) for point in KINDS[kind].points})
    channels = inputs * outputs
    work = places * (channels + 32 * (inputs + outputs)) + 100 * panels * channels
    return work < 9 * count * height * width * channels


class _Map(NamedTuple):
    """A map (N, H, W, C) of inputs or outputs and the panels for its tiles, (rows, C)."""

    image: npt.NDArray[np.float32]
    panels: torch.Tensor
    side: int
    dilation: int

    def to_points(self, plan: Plan, part: Part) -> None:
        arguments = self._arguments(plan, part)
        _share(len(part.tiles), 1, lambda begin, end: kernels.gather(begin, end, *arguments))

    def from_points(self, plan: Plan, part: Part, bias: torch.Tensor | None = None) -> None:
        """Threads share the channels where tiles overlap."""
        offset = torch.zeros(self.image.shape[3]) if bias is None else bias.detach()
        arguments = (*self._arguments(plan, part), offset.numpy())
        tiles, depth = len(part.tiles), self.image.shape[3]
        if self.side == INPUT:
            _share(depth, LANES, lambda begin, end: kernels.scatter(0, tiles, begin, end, *arguments))
        else:
            _share(tiles, 1, lambda begin, end: kernels.scatter(begin, end, 0, depth, *arguments))

    def _arguments(self, plan: Plan, part: Part) -> tuple[Any, ...]:
        fixed = (self.side, part.tiles, plan.rows, plan.columns, part.starts)
        return (*fixed, self.image, self.dilation, self.panels.numpy())


def _map(image: torch.Tensor, plan: Plan, side: int, dilation: int) -> _Map:
    panels = _space(("inputs", "outputs")[side], max(part.rows for part in plan.parts), image.shape[1])
    return _Map(image.detach().permute(0, 2, 3, 1).numpy(), panels, side, dilation)


def _runs(part: Part, *panels: torch.Tensor) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Slices of panels of equal length, and each of ``panels`` there as (number, rows, channels)."""
    for first, number, row, length in part.runs:
        if length:
            views = [p[row : row + number * length].view(number, length, -1) for p in panels]
            yield slice(first, first + number), views


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int
    ) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.dilation, ctx.has_bias = dilation, bias is not None
        plan, u = _prepared(x, weight, dilation)
        count, _, height, width = x.shape
        y = torch.empty(count, height, width, len(weight)).permute(0, 3, 1, 2)
        inputs, outputs = _map(x, plan, INPUT, dilation), _map(y, plan, OUTPUT, dilation)
        for part in plan.parts:
            inputs.to_points(plan, part)
            for run, (v, m) in _runs(part, inputs.panels, outputs.panels):
                torch.bmm(v, u[run].transpose(1, 2), out=m)
            outputs.from_points(plan, part, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dilation = ctx.dilation
        dy = dy.contiguous(memory_format=torch.channels_last)
        plan, u = _prepared(x, weight, dilation)
        dx = dweight = None
        outputs = _map(dy, plan, OUTPUT, dilation)
        inputs = _map(x, plan, INPUT, dilation)
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(x)
            gradients = inputs._replace(image=dx.permute(0, 2, 3, 1).numpy())
        du = _space("du", len(u), u[0].numel()).zero_().view_as(u) if ctx.needs_input_grad[1] else None
        for part in plan.parts:
            outputs.to_points(plan, part)
            if du is not None:
                inputs.to_points(plan, part)
                for run, (v, dm) in _runs(part, inputs.panels, outputs.panels):
                    du[run].baddbmm_(dm.transpose(1, 2), v)
            if dx is not None:
                for run, (dv, dm) in _runs(part, inputs.panels, outputs.panels):
                    torch.bmm(dm, u[run], out=dv)
                gradients.from_points(plan, part)
        if du is not None:
            taps = plan.taps.t() @ du.view(len(du), -1)
            dweight = taps.view(3, 3, *weight.shape[:2]).permute(2, 3, 0, 1)
            dweight = dweight.contiguous(memory_format=torch.channels_last)
        dbias = dy.sum((0, 2, 3)) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None


def _prepared(x: torch.Tensor, weight: torch.Tensor, dilation: int) -> tuple[Plan, torch.Tensor]:
    """The plan, and U (panels, K, C)."""
    count, inputs, height, width = x.shape
    plan = plan_of(count, height, width, dilation, BUFFER_FLOATS // (inputs + len(weight)))
    taps = weight.detach().permute(2, 3, 0, 1).reshape(9, -1)
    u = _space("u", len(plan.taps), taps.shape[1])
    return plan, torch.mm(plan.taps, taps, out=u).view(-1, len(weight), inputs)


_spaces = threading.local()


def _space(use: str, rows: int, columns: int) -> torch.Tensor:
    """Memory that this thread's last call for the same use has left: fresh memory costs as much as filling it."""
    kept = _spaces.__dict__.get(use)
    if kept is None or kept.numel() < rows * columns:
        with torch.inference_mode(False):  # or training could not write to it
            kept = _spaces.__dict__[use] = torch.empty(rows * columns)
    return kept[: rows * columns].view(rows, columns)


def _share(length: int, unit: int, work: Callable[[int, int], Any]) -> None:
    """``work(begin, end)`` on equal parts of 0 … length, one a thread, of whole ``unit``s."""
    threads = torch.get_num_threads()
    size = max(1, -(-length // (threads * unit))) * unit
    ranges = [(begin, min(begin + size, length)) for begin in range(0, length, size)]
    waiting = [_pool(threads, os.getpid()).submit(work, *each) for each in ranges[1:]]
    work(*ranges[0])
    for future in waiting:
        future.result()


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Of this process: after a fork the parent's threads are not there."""
    return ThreadPoolExecutor(threads, thread_name_prefix="winograd")
