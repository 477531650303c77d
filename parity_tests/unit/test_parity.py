"""``repro.parity``: a net beside a recording of Caffe's blobs, and what is said of the first layer that differs."""

from __future__ import annotations

import doctest
import json

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from parity_tests.conftest import CAFFE_FILES
from repro.errors import InputError
from repro.models import load_net
from repro.parity import (
    Recording,
    compare,
    comparison,
    first_difference,
    outputs_of,
    read_recording,
    recorded,
)

PROTOTXT = """
name: "small" force_backward: true
input: "data" input_shape { dim: 1 dim: 2 dim: 5 dim: 5 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "a/b" convolution_param { num_output: 3 kernel_size: 3
        weight_filler { type: "gaussian" std: 1 } } }
layer { name: "relu" type: "ReLU" bottom: "a/b" top: "a/b" }
layer { name: "pool" type: "Pooling" bottom: "a/b" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 4
        weight_filler { type: "gaussian" std: 1 } } }
"""


@pytest.fixture
def net(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "net.prototxt").write_text(PROTOTXT)
    return load_net(tmp_path / "net.prototxt")


@pytest.fixture
def recording(net) -> Recording:
    """What the net itself gives, with gradients."""
    data = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    blobs = net.forward_blobs(data)
    diff = torch.linspace(-1, 1, 4).reshape(1, 4)
    names = [(layer, index, each) for layer, blobs in net.params.items() for index, each in enumerate(blobs)]
    found = torch.autograd.grad(blobs["fc"], [data, *(each for *_, each in names)], diff)
    return Recording(
        blobs={name: values.detach().numpy().copy() for name, values in blobs.items()},
        inputs={"data": data.detach().numpy()},
        top_diff={"fc": diff.numpy()},
        input_diff={"data": found[0].numpy()},
        param_diff={
            f"{layer}/{index}": values.numpy()
            for (layer, index, _), values in zip(names, found[1:], strict=True)
        },
        prototxt=PROTOTXT,
    )


def written(recording: Recording, path, **changes):
    with h5py.File(path, "w") as file:
        for group in ("blobs", "inputs", "top_diff", "input_diff", "param_diff"):
            for name, values in getattr(recording, group).items():
                if group != "param_diff":
                    name = name.replace("%", "%25").replace("/", "%2F")
                file[f"{group}/{name}"] = values
        file["prototxt"] = recording.prototxt
        for name, values in changes.items():
            if name in file:
                del file[name]
            file[name] = values
    return path


def test_a_net_is_equal_to_what_it_gave(net, recording, tmp_path):
    path = written(recording, tmp_path / "blobs.h5", phase="TEST")
    assert first_difference(net, path) is None
    with h5py.File(path) as file:
        assert first_difference(net, file["/"]) is None
    rows = compare(net, path).rows
    assert [row.blob for row in rows[:4]] == ["data", "a/b", "pool", "fc"]
    # backwards, as the gradients come
    assert [(row.layer, row.blob) for row in rows[4:]] == [
        ("fc", "gradient of parameter 0"),
        ("fc", "gradient of parameter 1"),
        ("conv", "gradient of parameter 0"),
        ("conv", "gradient of parameter 1"),
        ("input", "gradient of data"),
    ]


def test_the_first_layer_that_differs_is_named(net, recording):
    """The blob is compared as its in-place ReLU leaves it, and both layers are named."""
    with torch.no_grad():
        net["conv"].bias[1] += 100
    found = first_difference(net, recording)
    assert (found.layer, found.type, found.blob, found.in_place) == ("conv", "Convolution", "a/b", ("relu",))
    assert found.index == (0, 1, 0, 0)
    assert found.value == net.forward_blobs(torch.from_numpy(recording.inputs["data"]))["a/b"][found.index]
    assert found.expected == recording.blobs["a/b"][found.index]
    largest = np.abs(recording.blobs["a/b"]).max()
    assert found.relative == pytest.approx(found.absolute / largest)
    assert 99 < found.absolute <= 101 + largest
    assert str(found).startswith(
        "first difference: layer conv (Convolution), then relu in-place, blob a/b: at (0, 1, 0, 0) "
    )
    assert str(found).endswith("of the largest value, 1e-05 allowed")
    lines = found.table.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["layer", "input", "conv", "pool", "fc"]
    assert "DIFFERS" not in lines[1]
    assert "1x3x3x3" in lines[2]
    assert lines[2].endswith("after relu in-place; DIFFERS")
    assert first_difference(net, recording, tolerance=1e6) is None


def test_the_tolerance_is_a_share_of_the_largest_value():
    want = np.array([1000.0, 1.0], np.float32)
    recorded = Recording(blobs={"y": want})
    assert first_difference({"y": want + np.float32([0, 0.009])}, recorded) is None
    assert first_difference({"y": want + np.float32([0, 0.011])}, recorded).index == (1,)
    zeros = Recording(blobs={"y": np.zeros(3, np.float32)})
    assert first_difference({"y": np.zeros(3)}, zeros) is None
    found = first_difference({"y": np.float32([0, 1e-30, 0])}, zeros)
    assert (found.index, found.relative) == ((1,), np.inf)


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ([[1.0, 2.0]], [1.0, 2.0], "the shape is 1x2, expected 2"),
        ([1.0, np.nan], [1.0, 2.0], "at (1,) nan, expected 2; NaN among our values"),
        ([1.0, 2.0], [np.nan, 2.0], "at (0,) 1, expected nan; NaN among the expected values"),
        (
            [np.nan, 2.0],
            [np.nan, 2.0],
            "at (0,) nan, expected nan; NaN among our values and the expected values",
        ),
        ([np.inf, 2.0], [-np.inf, 2.0], "at (0,) inf, expected -inf"),
        ([np.inf, 2.0], [np.inf, 2.0], ""),
        ([[]], [[]], ""),
    ],
)
def test_shapes_nan_and_infinity(ours, theirs, reason):
    recorded = Recording(blobs={"y": np.array(theirs, np.float32)})
    found = compare({"y": torch.tensor(ours)}, recorded)
    assert reason in str(found.first)
    assert (found.first is None) == (not reason)
    json.dumps(found.as_json(), allow_nan=False)


def test_a_blob_that_one_side_lacks_is_a_difference_unless_partial(net, recording):
    shorter = {name: values for name, values in recording.blobs.items() if name != "pool"}
    found = first_difference(net, Recording(blobs=shorter, inputs=recording.inputs))
    assert str(found) == "first difference: layer pool (Pooling), blob pool: the recording has no such blob"
    assert first_difference(net, Recording(blobs=shorter, inputs=recording.inputs), partial=True) is None
    more = {**recording.blobs, "extra": np.zeros(1, np.float32)}
    found = first_difference(net, Recording(blobs=more, inputs=recording.inputs))
    assert (found.blob, found.note) == ("extra", "the net has no such blob")
    with pytest.raises(InputError, match=r"none of its blobs \(z\) is in the net"):
        first_difference(net, Recording(blobs={"z": shorter["fc"]}, inputs=recording.inputs), partial=True)


def test_gradients_are_compared(net, recording):
    wrong = {**recording.param_diff, "conv/1": recording.param_diff["conv/1"] * 1.01}
    found = first_difference(net, Recording(**{**vars(recording), "param_diff": wrong}))
    assert (found.layer, found.blob) == ("conv", "gradient of parameter 1")
    assert all(parameter.grad is None for parameter in net.parameters())
    without = Recording(**{**vars(recording), "top_diff": {}})  # nothing flows back
    assert first_difference(net, without).blob == "gradient of parameter 0"


def test_a_port_of_ones_own(net, recording):
    """Its blobs by name, or a function of the inputs; the layers' names come from the recorded prototxt."""
    blobs = {name: torch.from_numpy(values) for name, values in recording.blobs.items()}
    assert first_difference(blobs, recording) is None
    seen = []
    found = first_difference(
        lambda inputs: (seen.extend(inputs), {**blobs, "pool": blobs["pool"] + 1})[1], recording
    )
    assert seen == ["data"]
    assert (found.layer, found.type, found.index) == ("pool", "Pooling", (0, 0, 0, 0))
    del blobs["a/b"]
    assert str(first_difference(blobs, recording)).endswith("blob a/b: the net has no such blob")
    assert first_difference(blobs, recording, partial=True) is None
    with pytest.raises(InputError, match="the net gave a Tensor, expected its blobs"):
        first_difference(lambda inputs: inputs["data"], recording)


def test_outputs_of_a_module(net, recording):
    port = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2, ceil_mode=True))
    port[0].load_state_dict({"weight": net["conv"].weight, "bias": net["conv"].bias})
    blobs = outputs_of(port, {"a/b": "1", "pool": "2"})
    assert first_difference(blobs, recording, partial=True) is None
    assert not port[0]._forward_hooks
    found = first_difference(outputs_of(port, {"a/b": "0"}), recording, partial=True)
    assert found.layer == "conv"  # before its ReLU
    with pytest.raises(InputError, match="blob 'fc': the module has no sub-module 'head'"):
        outputs_of(port, {"fc": "head"})


def test_in_phase_train_batch_norm_takes_the_batchs_statistics(tmp_path):
    (tmp_path / "net.prototxt").write_text(
        'input: "x" input_shape { dim: 4 dim: 1 } layer { name: "n" type: "BatchNorm" bottom: "x" top: "y" }'
    )
    x = np.float32([[1], [1], [3], [3]])
    recorded = {"inputs": {"x": x}, "blobs": {"y": (x - 2) / np.sqrt(np.float32(1 + 1e-5))}}
    net = load_net(tmp_path / "net.prototxt")
    assert first_difference(net, Recording(**recorded, phase="TRAIN")) is None
    assert not net.training
    assert first_difference(load_net(tmp_path / "net.prototxt"), Recording(**recorded)) is not None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "blobs: missing; expected a recording as tools/record_blobs.py writes it"),
        ({"blobs/y": "text"}, "blobs: missing"),
        ({"blobs/y": np.zeros(2, "S3")}, r"/blobs/y: \|S3 of shape \(2,\), expected numbers"),
        ({"blobs/y": np.zeros(2), "phase": "VALID"}, "phase: 'VALID', expected TRAIN or TEST"),
        ({"blobs/y": np.zeros(2), "image_bgr": np.zeros((2, 2))}, r"image_bgr: shape \(2, 2\), expected"),
    ],
)
def test_bad_recordings(tmp_path, content, reason):
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        for name, values in content.items():
            file[name] = values
    with pytest.raises(InputError, match=reason):
        read_recording(tmp_path / "bad.h5")


def test_a_recording_that_is_no_hdf5_or_of_another_net(net, tmp_path):
    (tmp_path / "text.h5").write_text("no")
    for path in (tmp_path / "text.h5", tmp_path / "none.h5", CAFFE_FILES):
        with pytest.raises(InputError, match=path.name):
            read_recording(path)
    with pytest.raises(InputError, match="input data is missing"):
        first_difference(net, Recording(blobs={"fc": np.zeros((1, 4), np.float32)}))
    shape = Recording(blobs={"fc": np.zeros((1, 4))}, inputs={"data": np.zeros((1, 9, 5, 5), np.float32)})
    with pytest.raises(InputError, match=r"the recording: the net cannot run on these inputs: .* 9 channels"):
        first_difference(net, shape)


@pytest.mark.parametrize("module", [comparison, recorded])
def test_the_examples_in_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
