"""BatchNorm and Scale folded into the convolutions before them, for running a net and never for its files."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch

from repro.models.layer_types.convolution import ConvolutionBase
from repro.models.layer_types.normalisation import BatchNorm, Scale, statistics
from repro.models.net import CaffeNet
from weights_conversion.caffe_pb2 import LayerParameter

_FOLDED = ("BatchNorm", "Scale")


@torch.no_grad()
def fold_batch_norm(net: CaffeNet) -> CaffeNet:
    """A net like ``net`` without BatchNorm and Scale layers: its convolutions do their work and have a bias for it.

    The scores differ by rounding (the folding itself is done in double precision). Nets without such layers come
    back as plain copies. The copy's weights no longer correspond to the original's Caffe files.

    Raises:
        ValueError: a BatchNorm or Scale that does not work in-place behind a convolution.
    """
    folds: dict[str, list[BatchNorm | Scale]] = {}  # convolution -> what folds into it
    makers: dict[str, str] = {}  # the convolution that a blob still comes from unchanged, but for scaling
    for layer in net.layers:
        if layer.type not in _FOLDED:
            for top in layer.tops:
                makers.pop(top, None)
            if layer.type == "Convolution":
                makers[layer.tops[0]] = layer.name
            continue
        if layer.bottoms != layer.tops or layer.bottoms[0] not in makers:
            raise ValueError(f"layer {layer.name!r} does not work in-place behind a convolution")
        folds.setdefault(makers[layer.bottoms[0]], []).append(net[layer.name])  # type: ignore[arg-type]

    parameter = copy.deepcopy(net.parameter)
    parameter.ClearField("layer")
    parameter.layer.extend(
        _with_bias(layer, folds) for layer in net.parameter.layer if layer.type not in _FOLDED
    )
    folded = CaffeNet(parameter, phase=net.phase).train(net.training)
    first = next(net.parameters())
    folded.to(first.device)
    folded.autocast = net.autocast
    for layer in folded.layers:
        target, source = folded[layer.name], net[layer.name]
        blobs = {name: blob.double() for name, blob in source.caffe_blobs().items()}
        if isinstance(target, ConvolutionBase):
            blobs.setdefault("bias", torch.zeros(target.outputs, dtype=torch.float64, device=first.device))
        for module in folds.get(layer.name, []):
            gain, bias = _gain_and_bias(module)
            blobs["weight"] = blobs["weight"] * gain[:, None, None, None]
            blobs["bias"] = blobs["bias"] * gain + bias
        for name, blob in target.caffe_blobs().items():
            blob.copy_(blobs[name])
    return folded.to(first.dtype)


def _with_bias(layer: LayerParameter, folds: dict[str, list[BatchNorm | Scale]]) -> LayerParameter:
    layer = copy.deepcopy(layer)
    if layer.name in folds:
        layer.convolution_param.bias_term = True
        layer.ClearField("param")
    return layer


def _gain_and_bias(module: BatchNorm | Scale) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer as y = gain·x + bias, in double precision."""
    blobs = {name: blob.double() for name, blob in module.caffe_blobs().items()}
    if isinstance(module, Scale):
        return blobs["weight"], blobs.get("bias", torch.zeros_like(blobs["weight"]))
    mean, variance = statistics(SimpleNamespace(**blobs))
    gain = (variance + module.eps).rsqrt()
    return gain, -mean * gain
