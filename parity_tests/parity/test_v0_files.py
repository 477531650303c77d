"""Nets and weight files of Caffe before the middle of 2013 (the V0 layout): the same net as in today's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format

from repro.cli import run_command
from repro.models import load_net
from weights_conversion import caffe_pb2, read_caffemodel

HEAD = 'name: "old" input: "data" input_dim: 1 input_dim: 4 input_dim: 9 input_dim: 10\n'
V0 = """
layers { layer { name: "conv1" type: "conv" num_output: 6 kernelsize: 3 stride: 2 group: 2 blobs_lr: 1 blobs_lr: 2
                 weight_decay: 1 weight_decay: 0 weight_filler { type: "gaussian" std: 0.01 } }
         bottom: "data" top: "conv1" }
layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
layers { layer { name: "norm1" type: "lrn" local_size: 3 alpha: 0.0001 beta: 0.75 } bottom: "conv1" top: "norm1" }
layers { layer { name: "pad2" type: "padding" pad: 2 } bottom: "norm1" top: "pad2" }
layers { layer { name: "conv2" type: "conv" num_output: 5 kernelsize: 5 biasterm: false } bottom: "pad2" top: "conv2" }
layers { layer { name: "pool2" type: "pool" pool: AVE kernelsize: 3 stride: 2 pad: 1 } bottom: "conv2" top: "pool2" }
layers { layer { name: "drop2" type: "dropout" dropout_ratio: 0.4 } bottom: "pool2" top: "pool2" }
layers { layer { name: "fc3" type: "innerproduct" num_output: 7 } bottom: "pool2" top: "fc3" }
layers { layer { name: "prob" type: "softmax" } bottom: "fc3" top: "prob" }
"""
TODAY = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 1 decay_mult: 1 }
        param { lr_mult: 2 decay_mult: 0 }
        convolution_param { num_output: 6 kernel_size: 3 stride: 2 group: 2
                            weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "norm1" type: "LRN" bottom: "conv1" top: "norm1" lrn_param { local_size: 3 alpha: 0.0001 beta: 0.75 } }
layer { name: "conv2" type: "Convolution" bottom: "norm1" top: "conv2"
        convolution_param { num_output: 5 kernel_size: 5 bias_term: false pad: 2 } }
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2"
        pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "drop2" type: "Dropout" bottom: "pool2" top: "pool2" dropout_param { dropout_ratio: 0.4 } }
layer { name: "fc3" type: "InnerProduct" bottom: "pool2" top: "fc3" inner_product_param { num_output: 7 } }
layer { name: "prob" type: "Softmax" bottom: "fc3" top: "prob" }
"""
TYPES = [
    "Convolution",
    "ReLU",
    "LRN",
    "padding",
    "Convolution",
    "Pooling",
    "Dropout",
    "InnerProduct",
    "Softmax",
]
SHAPES = {
    "conv1": [(6, 2, 3, 3), (1, 1, 1, 6)],
    "conv2": [(5, 6, 5, 5)],
    "fc3": [(1, 1, 7, 45), (1, 1, 1, 7)],
}


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path, dict[str, list[np.ndarray]]]:
    """A prototxt and a weight file as Caffe wrote them then, and the values in the file."""
    rng = np.random.default_rng(0)
    weights = {name: [rng.normal(size=s).astype("f4") for s in shapes] for name, shapes in SHAPES.items()}
    net = text_format.Parse(HEAD + V0, caffe_pb2.NetParameter())
    for layer in net.layers:
        for values in weights.get(layer.layer.name, ()):
            n, c, h, w = values.shape
            layer.layer.blobs.add(num=n, channels=c, height=h, width=w, data=values.ravel())
    prototxt, caffemodel = tmp_path / "old.prototxt", tmp_path / "old.caffemodel"
    prototxt.write_text(HEAD + V0)
    caffemodel.write_bytes(net.SerializeToString())
    return prototxt, caffemodel, weights


def test_a_weight_file_holds_its_layers(files):
    _, caffemodel, weights = files
    model = read_caffemodel(caffemodel)
    assert (model.name, model.form) == ("old", "Caffe binary, V0 layout")
    assert [layer.type for layer in model.layers.values()] == TYPES
    assert (model.layers["conv1"].bottoms, model.layers["conv1"].tops) == (("data",), ("conv1",))
    for name, layer in model.layers.items():
        assert [blob.tobytes() for blob in layer.blobs] == [blob.tobytes() for blob in weights.get(name, [])]
        assert layer.legacy == (True,) * len(layer.blobs)


def test_the_net_is_todays_to_the_bit(files, tmp_path):
    prototxt, caffemodel, weights = files
    (tmp_path / "new.prototxt").write_text(HEAD + TODAY)
    old, new = load_net(prototxt, caffemodel), load_net(tmp_path / "new.prototxt")
    for name, blobs in weights.items():
        for parameter, values in zip(new.params[name], blobs, strict=True):
            parameter.data = torch.from_numpy(values).reshape(parameter.shape)
    image = torch.randn(1, 4, 9, 10, generator=torch.Generator().manual_seed(1))
    found, expected = old.forward_blobs(image), new.forward_blobs(image)
    assert list(found) == list(expected)
    for blob, values in expected.items():
        assert torch.equal(found[blob], values), blob
    assert list(old.parameter.layer) == list(new.parameter.layer)


def test_opencv_reads_the_same_net(files, capsys):
    """Its importer upgrades old prototxts by itself; of old weight files it loses the blobs, so ours are written for
    it."""
    pytest.importorskip("cv2")
    prototxt, caffemodel, _ = files
    assert run_command(["check", str(prototxt), str(caffemodel)]) == 0
    assert "alone" not in capsys.readouterr().out


def test_listed_and_converted(files, tmp_path, capsys):
    prototxt, caffemodel, weights = files
    target = tmp_path / "new.safetensors"
    assert run_command(["inspect", str(caffemodel)]) == 0
    assert "old: Caffe binary, V0 layout, 9 layers\n  conv1           Convolution" in capsys.readouterr().out
    assert run_command(["convert", str(prototxt), str(caffemodel), str(target)]) == 0
    params = load_net(prototxt, target).params
    assert {name: len(found) for name, found in params.items()} == {n: len(b) for n, b in weights.items()}
    for name, blobs in weights.items():
        for parameter, values in zip(params[name], blobs, strict=True):
            assert parameter.detach().numpy().tobytes() == values.tobytes(), name


def test_a_damaged_layer_is_named(files, tmp_path):
    _, caffemodel, _ = files
    damaged = tmp_path / "damaged.caffemodel"
    damaged.write_bytes(caffemodel.read_bytes().replace(b"innerproduct", b"innerproduc\xff"))
    with pytest.raises(ValueError, match=r"layer number 8 .*: a name is not UTF-8"):
        read_caffemodel(damaged)
