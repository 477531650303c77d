"""Caffe's spatial pooling (``pooling_layer.cpp``, ``spp_layer.cpp``) and SegNet's way back (``upsample_layer.cpp``).

Caffe rounds the output size up and then drops a last window that would start in the right or bottom padding:

    out = ceil((in + 2·pad - kernel) / stride) + 1;   if (out - 1)·stride >= in + pad: out -= 1

It drops along both axes where one of them has padding, and nothing where none has. PyTorch's ``ceil_mode=True`` always
drops. AVE divides by the window's size clipped to the *padded* input, so border windows of a 3x3 kernel with pad 1
still divide by 9: ``count_include_pad=True``. MAX never sees the padding.

Where PyTorch and Caffe part: Caffe allows a padding of more than half a kernel, and without padding it keeps a last
window that lies outside of the image (stride larger than kernel), which is -FLT_MAX for MAX and 0 for AVE (in Caffe
0 / 0, no number, where the window begins right behind the image).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Pair = tuple[int, ...]  # rows and columns
_FLT_MAX = torch.finfo(torch.float32).max


def pooled_sizes(sizes: Pair, kernel: Pair, stride: Pair, pad: Pair, *, floor: bool = False) -> Pair:
    """Caffe's rows and columns for a blob of ``sizes``; ``floor`` is ``round_mode: FLOOR``.

    A pad of one axis drops the last windows of both.

    >>> pooled_sizes((321, 321), (3, 2), (2, 2), (1, 0)), pooled_sizes((5, 5), (1, 1), (3, 3), (0, 0))
    ((161, 161), (3, 3))
    """
    pooled = []
    for size, k, step, p in zip(sizes, kernel, stride, pad, strict=True):
        span = size + 2 * p - k
        out = (span // step if floor else -(-span // step)) + 1
        pooled.append(out - 1 if any(pad) and (out - 1) * step >= size + p else out)
    return tuple(pooled)


def max_pool(
    x: torch.Tensor, kernel: Pair, stride: Pair = (1, 1), pad: Pair = (0, 0), *, floor: bool = False
) -> torch.Tensor:
    """``pool: MAX``: (N, C, H, W) to the largest value of each window. Of equal ones the first gets the gradient.

    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> max_pool(x, (2, 2), (2, 2)).flatten().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """
    padded, inner_pad = _pad_beyond_half(x, kernel, pad, -torch.inf)
    out = F.max_pool2d(padded, kernel, stride, inner_pad, ceil_mode=not floor)
    return _grow(out, pooled_sizes(x.shape[-2:], kernel, stride, pad, floor=floor), -_FLT_MAX)


def max_pool_with_mask(
    x: torch.Tensor, kernel: Pair, stride: Pair = (1, 1), pad: Pair = (0, 0), *, floor: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """``max_pool``, and where in the plane of x each value stands: y·W + x, int64, -1 for a window outside of x.

    Caffe's second top holds the places as float.

    >>> max_pool_with_mask(torch.arange(16.0).reshape(1, 1, 4, 4), (2, 2), (2, 2))[1].flatten().tolist()
    [5, 7, 13, 15]
    """
    height, width = x.shape[-2:]
    padded, inner_pad = _pad_beyond_half(x, kernel, pad, -torch.inf)
    out, place = F.max_pool2d(padded, kernel, stride, inner_pad, ceil_mode=not floor, return_indices=True)
    if padded is not x:
        extra_h, extra_w = (padded.shape[-2] - height) // 2, (padded.shape[-1] - width) // 2
        place = (place // padded.shape[-1] - extra_h) * width + place % padded.shape[-1] - extra_w
    sizes = pooled_sizes(x.shape[-2:], kernel, stride, pad, floor=floor)
    return _grow(out, sizes, -_FLT_MAX), _grow(place, sizes, -1)


def average_pool(
    x: torch.Tensor, kernel: Pair, stride: Pair = (1, 1), pad: Pair = (0, 0), *, floor: bool = False
) -> torch.Tensor:
    """``pool: AVE``: (N, C, H, W) to the mean of each window; padding within H + pad and W + pad counts as zeros."""
    sizes = pooled_sizes(x.shape[-2:], kernel, stride, pad, floor=floor)
    padded, pad = _pad_beyond_half(x, kernel, pad, 0.0)
    out = F.avg_pool2d(padded, kernel, stride, pad, ceil_mode=not floor, count_include_pad=True)
    return _grow(out, sizes, 0.0)


def stochastic_pool(
    x: torch.Tensor, kernel: Pair, stride: Pair = (1, 1), *, training: bool, floor: bool = False
) -> torch.Tensor:
    """``pool: STOCHASTIC`` (``pooling_layer.cu``; Caffe has it on GPUs alone and without padding).

    In training one value of each window, drawn with a probability in proportion to it; in testing Σ x² / Σ x.
    Values are expected to be at least 0, as after a ReLU. A window of zeros gives 0.
    """
    out_h, out_w = pooled_sizes(x.shape[-2:], kernel, stride, (0, 0), floor=floor)
    need_h = (out_h - 1) * stride[0] + kernel[0] - x.shape[-2]
    need_w = (out_w - 1) * stride[1] + kernel[1] - x.shape[-1]
    # a window that ends outside of the image is cut there: zeros are never drawn and add nothing
    x = F.pad(x, (0, max(need_w, 0), 0, max(need_h, 0)))
    windows = x.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(4)
    if not training:
        return (windows * windows).sum(dim=-1) / windows.sum(dim=-1).clamp_min(torch.finfo(x.dtype).tiny)
    running = windows.detach().cumsum(dim=-1)
    drawn = torch.rand_like(running[..., :1]) * running[..., -1:]
    place = (running < drawn).sum(dim=-1, keepdim=True).clamp_max(running.shape[-1] - 1)
    return windows.gather(-1, place)[..., 0]


def spatial_pyramid(
    x: torch.Tensor, height: int, pool: Callable[[torch.Tensor, Pair, Pair, Pair], torch.Tensor]
) -> torch.Tensor:
    """``SPP``: (N, C, H, W) pooled into 1, 4, 16, … cells at ``height`` levels, flattened to (N, C·(1 + 4 + …)).

    ``pool`` takes x, kernel, stride and pad; the stride is the kernel.
    """
    levels = []
    for level in range(height):
        kernel, pad = zip(*(pyramid_window(size, 2**level) for size in x.shape[-2:]), strict=True)
        levels.append(pool(x, kernel, kernel, pad).flatten(1))
    return torch.cat(levels, dim=1)


def pyramid_window(size: int, cells: int) -> Pair:
    """Kernel and pad of ``SPP`` along an axis of ``size`` for so many cells: ceil(size / cells), and half of what is
    missing, rounded up.

    >>> pyramid_window(7, 2)
    (4, 1)

    Raises:
        ValueError: a pad that is not less than the kernel, which Caffe refuses.
    """
    kernel = -(-size // cells)
    pad = (kernel * cells - size + 1) // 2
    if pad >= kernel:
        raise ValueError(f"{size} cells do not go into {cells}: a pad of {pad} for a kernel of {kernel}")
    return kernel, pad


def unpool(x: torch.Tensor, mask: torch.Tensor, size: Pair) -> torch.Tensor:
    """SegNet's ``Upsample``: puts each value back to where the pooling found it, zeros elsewhere.

    Args:
        x: (N, C, h, w).
        mask: (N, C, h, w), the places in a plane of ``size``, as ``max_pool_with_mask`` gives them; float or integer.
        size: (H, W) of the result.

    Raises:
        ValueError: a place outside of the plane.
    """
    place = mask.long().flatten(2)
    if (
        place.device.type == "cpu"
        and place.numel()
        and not 0 <= int(place.min()) <= int(place.max()) < size[0] * size[1]
    ):
        raise ValueError(
            f"a switch lies outside of the {size[0]}x{size[1]} output: the pooling had another size"
        )
    out = x.new_zeros(*x.shape[:2], size[0] * size[1]).scatter(2, place, x.flatten(2))
    return out.reshape(*x.shape[:2], *size)


def _pad_beyond_half(x: torch.Tensor, kernel: Pair, pad: Pair, value: float) -> tuple[torch.Tensor, Pair]:
    """PyTorch pads by half a kernel at most; beyond that the image itself is padded."""
    if pad[0] * 2 <= kernel[0] and pad[1] * 2 <= kernel[1]:
        return x, pad
    return F.pad(x, (pad[1], pad[1], pad[0], pad[0]), value=value), (0, 0)


def _grow(out: torch.Tensor, sizes: Pair, value: float) -> torch.Tensor:
    """Adds the windows outside of the image that PyTorch leaves out, takes away those in the padding that it has."""
    missing_h, missing_w = sizes[0] - out.shape[-2], sizes[1] - out.shape[-1]
    return F.pad(out, (0, missing_w, 0, missing_h), value=value) if missing_h or missing_w else out
