"""Every recorded layer and small net of Caffe: blobs, gradients and moving averages."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from repro.errors import InputError
from repro.models.net import CaffeNet, read_net

TOLERANCE = 1e-5
RECORDING = Path(__file__).parent / "golden" / "layers_caffe.h5"
with h5py.File(RECORDING) as _file:
    CASES = [f"{type_}/{case}" for type_ in _file for case in _file[type_]]


def tensors(group):
    """The datasets of a group, by their path in it."""
    found = {}
    group.visititems(
        lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
    )
    return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}


def recorded(case):
    with h5py.File(RECORDING) as file:
        group = file[case]
        parts = {name: tensors(group[name]) for name in group}
        return dict(group.attrs), parts


def assert_close(found, expected, what):
    assert tuple(found.shape) == tuple(expected.shape), what
    scale = expected.abs().max().item() if expected.numel() else 0.0
    difference = (found - expected).abs()
    worst = difference.max().item() if difference.numel() else 0.0
    at = np.unravel_index(int(difference.argmax()), difference.shape) if difference.ndim else ()
    assert worst <= TOLERANCE * (scale or 1.0), (
        f"{what} at {tuple(map(int, at))}: {found[at].item()}, Caffe has {expected[at].item()}"
    )


@pytest.mark.parametrize("case", CASES)
def test_layer_is_caffes(case, tmp_path):
    attributes, parts = recorded(case)
    path = tmp_path / "net.prototxt"
    path.write_text(attributes["prototxt"])
    try:
        net = CaffeNet(read_net(path), phase=attributes["phase"].lower())
    except InputError as error:
        if "is not known" not in str(error):
            raise
        pytest.skip(str(error))
    for place, value in parts.get("params", {}).items():
        layer, _, index = place.rpartition("/")
        net.params[layer][int(index)].data.copy_(value)
    inputs = {
        name: value.requires_grad_(name in parts.get("input_diff", {}))
        for name, value in parts["inputs"].items()
    }
    blobs = net.forward_blobs(inputs)
    for name, expected in parts["blobs"].items():
        assert net.shapes[name] == tuple(expected.shape)
        assert_close(blobs[name].detach(), expected, name)

    losses = {top for layer in net.layers for top, w in zip(layer.tops, layer.loss_weights, strict=True) if w}
    total = net.total_loss(blobs) if losses else torch.zeros(())
    for name, weights in parts.get("top_diff", {}).items():
        if name not in losses and blobs[name].requires_grad:
            total = total + (blobs[name] * weights.reshape(blobs[name].shape)).sum()
    if total.requires_grad:
        total.backward()
    for name, expected in parts.get("input_diff", {}).items():
        gradient = inputs[name].grad
        assert_close(
            torch.zeros_like(expected) if gradient is None else gradient, expected, f"gradient of {name}"
        )
    for place, expected in parts.get("param_diff", {}).items():
        layer, _, index = place.rpartition("/")
        parameter = net.params[layer][int(index)]
        if parameter.requires_grad:
            gradient = torch.zeros_like(expected) if parameter.grad is None else parameter.grad
            assert_close(gradient, expected, f"gradient of {place}")
    for place, expected in parts.get("params_after", {}).items():
        layer, _, index = place.rpartition("/")
        assert_close(net.params[layer][int(index)].detach(), expected, f"{place} afterwards")
