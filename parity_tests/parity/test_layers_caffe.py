"""156 layers and small nets of Caffe against golden/layers_caffe.h5: what the forward pass leaves in every blob, the
gradients of inputs and parameters, and the parameters after it (BatchNorm's moving averages)."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from parity_tests.conftest import assert_close
from parity_tests.onnx_nets import run_as_onnx
from parity_tests.recorded_layers import in_test_phase, parameters, recordings
from parity_tests.tolerances import CAFFE_LAYER_REL
from repro.errors import InputError
from repro.models.net import load_net
from repro.parity import first_difference

# types, or settings of them, that have no form in ONNX: exporting says so by layer
WITHOUT_ONNX = (
    *(f"{kind}/" for kind in ("Accuracy", "BiasChannel", "Filter", "Im2col", "SegAccuracy", "SPP")),
    *(f"{kind}/" for kind in ("ContrastiveLoss", "EuclideanLoss", "HingeLoss", "InfogainLoss")),
    *(f"{kind}/" for kind in ("MultinomialLogisticLoss", "SigmoidCrossEntropyLoss", "SoftmaxWithLoss")),
    *(f"graph/{name}" for name in ("msc_shared", "propagate_down", "shared_params", "two_losses")),
)


@pytest.mark.parametrize("name", recordings())
def test_recorded_layer(golden, name, tmp_path):
    recorded = golden("layers_caffe")[name]
    (tmp_path / "net.prototxt").write_text(recorded.attrs["prototxt"])
    net = load_net(tmp_path / "net.prototxt", phase=recorded.attrs["phase"].lower())
    with torch.no_grad():
        for layer, index, values in parameters(recorded, "params"):
            net.params[layer][index].copy_(torch.from_numpy(values))

    difference = first_difference(net, recorded, tolerance=CAFFE_LAYER_REL)
    assert difference is None, f"{difference}\n{difference.table}"
    for blob, values in recorded["blobs"].items():
        assert net.shapes[blob] == shape_as_built(name, values), blob
    for layer, index, values in parameters(recorded, "params_after"):
        what = f"{name}: parameter {index} of {layer} after the forward pass"
        close(net.params[layer][index], values, what)


@pytest.mark.parametrize("name", in_test_phase())
def test_recorded_layer_in_onnx(golden, name, tmp_path):
    recorded = golden("layers_caffe")[name]
    (tmp_path / "net.prototxt").write_text(recorded.attrs["prototxt"])
    net = load_net(tmp_path / "net.prototxt")
    with torch.no_grad():
        for layer, index, values in parameters(recorded, "params"):
            net.params[layer][index].copy_(torch.from_numpy(values))
    inputs = {blob: np.asarray(values[()]) for blob, values in recorded["inputs"].items()}
    if name.startswith(WITHOUT_ONNX):
        with pytest.raises(InputError, match="ONNX"):
            run_as_onnx(net, inputs, net.outputs)
        return
    for blob, found in zip(net.outputs, run_as_onnx(net, inputs, net.outputs), strict=True):
        close(torch.from_numpy(found), recorded["blobs"][blob], f"{name}: blob {blob} in ONNX")


def shape_as_built(name: str, values: h5py.Dataset) -> tuple[int, ...]:
    """What the net says before it runs: Filter counts on all items, as Caffe does."""
    return (5, *values.shape[1:]) if name == "Filter/sel" else values.shape


def close(got: torch.Tensor, want, what: str) -> None:
    assert_close(got, want, CAFFE_LAYER_REL, what, relative_to_max=True)
