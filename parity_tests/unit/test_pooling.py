"""Pooling beside the loops of ``pooling_layer.cpp``, windows larger than the blob too: Caffe rounds sizes up, and cuts
what reaches beyond the blob off."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from repro.errors import InputError
from repro.models.net import CaffeNet, read_net
from weights_conversion.prototxt import parse_prototxt


def caffe_pool(x: np.ndarray, kernel, stride, pad, method: str) -> np.ndarray | None:
    """One plane, pooled as Caffe does; None where nothing would come out. Pairs are of rows and columns."""
    kernel, stride, pad = (
        value if isinstance(value, tuple) else (value, value) for value in (kernel, stride, pad)
    )
    axes = list(zip(x.shape, kernel, stride, pad, strict=True))
    pooled = [math.ceil((size + 2 * p - k) / s) + 1 for size, k, s, p in axes]
    if any(pad):
        pooled = [
            out - ((out - 1) * s >= size + p) for out, (size, _, s, p) in zip(pooled, axes, strict=True)
        ]
    if min(pooled) < 1:
        return None
    result = np.empty(pooled)
    for place in np.ndindex(*pooled):
        starts = [index * s - p for index, (_, _, s, p) in zip(place, axes, strict=True)]
        ends = [min(start + k, size + p) for start, (size, k, _, p) in zip(starts, axes, strict=True)]
        area = math.prod(end - start for start, end in zip(starts, ends, strict=True))
        cells = x[tuple(slice(max(start, 0), max(end, 0)) for start, end in zip(starts, ends, strict=True))]
        if method == "AVE":
            result[place] = cells.sum() / area if cells.size else 0
        else:
            result[place] = cells.max() if cells.size else np.finfo(np.float32).min
    return result


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (2, 3), (5, 2), (6, 7)])
def test_every_size_is_caffes(method, height, width):
    x = np.random.default_rng(0).normal(size=(height, width)).astype(np.float32)
    for kernel, stride in itertools.product(range(1, 7), range(1, 5)):
        for pad in range(kernel):
            text = (
                f'input: "data" input_shape {{ dim: 1 dim: 1 dim: {height} dim: {width} }}\n'
                f'layer {{ name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param {{ '
                f"pool: {method} kernel_size: {kernel} stride: {stride} pad: {pad} }} }}"
            )
            expected = caffe_pool(x, kernel, stride, pad, method)
            if expected is None:
                with pytest.raises(InputError, match="does not fit into"):
                    CaffeNet(read_net(parse_prototxt(text, "net")))
                continue
            net = CaffeNet(read_net(parse_prototxt(text, "net")))
            found = net(torch.from_numpy(x)[None, None])[0, 0].numpy()
            assert net.shapes["p"][2:] == found.shape == expected.shape, (kernel, stride, pad)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("pad", [(1, 0), (0, 1)])
def test_a_pad_of_one_axis_drops_the_last_window_of_both(method, pad):
    """Where a stride is larger than the kernel, the last window lies behind the blob."""
    kernel = (2, 1) if pad[0] else (1, 2)
    stride = (1, 3) if pad[0] else (3, 1)
    x = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    text = (
        'input: "data" input_shape { dim: 1 dim: 1 dim: 5 dim: 5 }\n'
        f'layer {{ name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param {{ pool: {method} '
        f"kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]} "
        f"pad_h: {pad[0]} pad_w: {pad[1]} }} }}"
    )
    net = CaffeNet(read_net(parse_prototxt(text, "net")))
    expected = caffe_pool(x, kernel, stride, pad, method)
    found = net(torch.from_numpy(x)[None, None])[0, 0].numpy()
    assert net.shapes["p"][2:] == found.shape == expected.shape == ((6, 2) if pad[0] else (2, 6))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
