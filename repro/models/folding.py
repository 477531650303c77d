"""BatchNorm and Scale folded into the convolutions before them, for running a net and never for its files."""

from __future__ import annotations

import copy

import torch
import torch.nn as nn

from repro.layers.common import BatchNorm, Scale
from repro.models.base import CaffeNet


@torch.no_grad()
def fold_batch_norm(net: CaffeNet) -> CaffeNet:
    """A copy of ``net`` without BatchNorm and Scale layers: its convolutions do their work and have a bias for it.

    The scores differ by rounding (the folding itself is done in double precision). Nets without such layers come
    back as plain copies. The copy's weights no longer correspond to the original's Caffe files.

    Raises:
        ValueError: a BatchNorm or Scale that does not work in-place behind a convolution.
    """
    folded = copy.deepcopy(net)
    makers: dict[
        str, nn.Conv2d
    ] = {}  # the convolution that a blob still comes from unchanged, but for scaling
    kept = []
    for layer in net.layers:
        module = folded.get_submodule(layer.name)
        if not isinstance(module, (BatchNorm, Scale)):
            kept.append(layer)
            makers.pop(layer.top, None)
            if isinstance(module, nn.Conv2d):
                makers[layer.top] = module
            continue
        if layer.bottoms != (layer.top,) or layer.top not in makers:
            raise ValueError(f"layer {layer.name!r} does not work in-place behind a convolution")
        _scale_outputs_(makers[layer.top], *_gain_and_bias(module))
        delattr(folded, layer.name)
    folded.layers = kept
    return folded.to(next(net.parameters()).dtype)


def _gain_and_bias(module: BatchNorm | Scale) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(module, Scale):
        return module.weight.double(), module.bias.double()
    return copy.deepcopy(module).double().gain_and_bias()


def _scale_outputs_(conv: nn.Conv2d, gain: torch.Tensor, bias: torch.Tensor) -> None:
    """The convolution's outputs times ``gain`` plus ``bias``. Between calls the values stay in double precision."""
    weight = conv.weight.double() * gain[:, None, None, None]
    if conv.bias is not None:
        bias = bias + conv.bias.double() * gain
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
