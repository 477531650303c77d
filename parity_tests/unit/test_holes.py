"""DeepLab-v1's name for dilation, ``hole``, in every layer that reads a convolution_param."""

from __future__ import annotations

import pytest
import torch

from repro.models.net import CaffeNet, read_net
from weights_conversion.prototxt import parse_prototxt


@pytest.mark.parametrize("type_", ["Convolution", "Deconvolution", "Im2col"])
@pytest.mark.parametrize(
    ("hole", "dilation"), [("hole: 2", "dilation: 2"), ("hole_h: 2 hole_w: 1", "dilation: 2 dilation: 1")]
)
def test_a_hole_is_a_dilation(type_, hole, dilation):
    x, tops = torch.arange(150.0).reshape(1, 3, 5, 10), []
    for holes in (hole, dilation):
        filler = (
            'num_output: 2 weight_filler { type: "constant" value: 0.1 }' if "conv" in type_.lower() else ""
        )
        text = (
            'input: "data" input_shape { dim: 1 dim: 3 dim: 5 dim: 10 }\n'
            f'layer {{ name: "a" type: "{type_}" bottom: "data" top: "a" '
            f"convolution_param {{ kernel_size: 2 {holes} {filler} }} }}"
        )
        net = CaffeNet(read_net(parse_prototxt(text, "net")))
        net.fill()
        tops.append(net(x))
    assert torch.equal(*tops)
