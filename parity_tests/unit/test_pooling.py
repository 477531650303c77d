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


def caffe_pool(x: np.ndarray, kernel: int, stride: int, pad: int, method: str) -> np.ndarray | None:
    """One plane, pooled as Caffe does; None where nothing would come out."""
    pooled = [math.ceil((size + 2 * pad - kernel) / stride) + 1 for size in x.shape]
    if pad:
        pooled = [out - ((out - 1) * stride >= size + pad) for out, size in zip(pooled, x.shape, strict=True)]
    if min(pooled) < 1:
        return None
    result = np.empty(pooled)
    for place in np.ndindex(*pooled):
        starts = [index * stride - pad for index in place]
        ends = [min(start + kernel, size + pad) for start, size in zip(starts, x.shape, strict=True)]
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
