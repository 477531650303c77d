"""Published nets, whole, beside OpenCV's Caffe importer: every blob, from the same prototxt and weight file.

The weights are the fillers' (``public_nets.py``). OpenCV knows no ``Upsample``, so SegNet runs beside a few lines of
PyTorch that know nothing of Caffe.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from parity_tests.conftest import assert_close
from parity_tests.onnx_nets import run_as_onnx
from parity_tests.public_nets import PUBLIC_NETS, SLOW, build
from parity_tests.tolerances import IMPORTER_REL, ONNX_SCORES_REL
from repro.parity.opencv import beside_opencv

BESIDE_OPENCV = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in PUBLIC_NETS
    if name != "SegNet"
]


@pytest.mark.parametrize("name", BESIDE_OPENCV)
def test_every_blob_is_opencvs(name, tmp_path):
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip("OpenCV 5 has no Caffe importer")
    net, image = build(name, tmp_path)
    found = beside_opencv(net, {next(iter(net.inputs)): image}, tolerance=IMPORTER_REL)
    assert found.first is None, "\n".join(found.lines())
    assert found.note == ""
    assert all(row.relative is not None for row in found.rows)


def test_segnet_puts_values_back_where_they_came_from(tmp_path):
    net, image = build("SegNet", tmp_path)
    with torch.no_grad():
        blobs = net.forward_blobs(torch.from_numpy(image))
        x, places = F.local_response_norm(torch.from_numpy(image), 5, 1e-4, 0.75, 1.0), []

        def block(x, name, *, relu):
            x = F.conv2d(x, *net.params[name], padding=3)
            mean, variance, factor = net.params[f"{name}_bn"]
            x = F.batch_norm(x, mean / factor, variance / factor, *net.params[f"{name}_scale"], eps=1e-5)
            return F.relu(x) if relu else x

        for index in range(1, 5):
            x, place = F.max_pool2d(block(x, f"conv{index}", relu=True), 2, return_indices=True)
            places.append(place)
            assert_close(blobs[f"pool{index}_mask"], place.float(), 0, f"places of pool{index}")
        for index in range(4, 0, -1):
            x = F.max_unpool2d(x, places[index - 1], 2)
            assert_close(blobs[f"upsample{index}"], x, IMPORTER_REL, f"upsample{index}", relative_to_max=True)
            x = block(x, f"conv_decode{index}", relu=False)
        x = F.conv2d(x, *net.params["conv_classifier"], padding=0).softmax(1)
    assert_close(blobs["prob"], x, IMPORTER_REL, "prob", relative_to_max=True)


@pytest.mark.parametrize("name", [name for name in PUBLIC_NETS if name not in SLOW])
def test_outputs_are_onnxs(name, tmp_path):
    net, image = build(name, tmp_path)
    with torch.no_grad():
        blobs = net.forward_blobs(torch.from_numpy(image))
    for blob, theirs in zip(net.outputs, run_as_onnx(net, {"data": image}, net.outputs), strict=True):
        assert_close(blobs[blob], theirs, ONNX_SCORES_REL, f"{name}: {blob}", relative_to_max=True)
