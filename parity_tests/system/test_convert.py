"""``repro convert`` of any net: ONNX, plain PyTorch and weights, with and without the prototxt, and what it refuses."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from parity_tests.conftest import CAFFE_FILES
from repro.cli import run_command
from repro.models.net import load_net

NET, WEIGHTS = CAFFE_FILES / "vgg16_bg_deploy.prototxt", CAFFE_FILES / "vgg16_bg.caffemodel"
RESNET = CAFFE_FILES / "resnet101_aspp.caffemodel"


def convert(capsys, *arguments) -> tuple[int, list[str], str]:
    status = run_command(["convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_onnx_and_python(capsys, tmp_path):
    pytest.importorskip("onnxruntime")
    small = tmp_path / "net.prototxt"
    small.write_text(
        'name: "small" input: "x" input_shape { dim: 1 dim: 3 dim: 20 dim: 25 } '
        'layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 4 kernel_size: 3 '
        'weight_filler { type: "xavier" } } } '
        'layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { '
        "pool: AVE kernel_size: 3 stride: 2 pad: 1 } } "
        'layer { name: "q" type: "Pooling" bottom: "p" top: "q" pooling_param { kernel_size: 1 stride: 3 } }'
    )
    torch.manual_seed(0)
    load_net(small)
    from weights_conversion import save_safetensors

    save_safetensors(load_net(small), tmp_path / "w.safetensors")
    for name in ("out.onnx", "out.py"):
        status, lines, _ = convert(capsys, small, tmp_path / "w.safetensors", tmp_path / name)
        assert status == 0
        assert lines[1] == "inputs x 1x3x20x25; free: batch and height and width"
        (figures,) = re.findall(r"output q: .*: (\S+) for 1x3x20x25, (\S+) for 2x3x52x57", "\n".join(lines))
        assert all(float(figure) < 1e-6 for figure in figures)
        assert (tmp_path / name).is_file()
    _, lines, _ = convert(capsys, small, tmp_path / "w.safetensors", tmp_path / "out.py", "--json")
    written = [Path(path) for path in json.loads("\n".join(lines))["written"]]
    assert [path.name for path in written] == ["out.safetensors", "out.py"]  # all files, also in the JSON


def test_weights_need_no_net(capsys, tmp_path):
    """Through every form and back; BatchNorm's blobs have their names, also from HDF5 files, which state no types."""
    chain = [RESNET, *(tmp_path / f"a{ending}" for ending in (".npz", ".h5", ".safetensors", ".caffemodel"))]
    for source, target in itertools.pairwise(chain):
        assert convert(capsys, source, target)[0] == 0
    prototxt = CAFFE_FILES / "resnet101_aspp_deploy.prototxt"
    first = load_net(prototxt, chain[0]).state_dict()
    for path in chain[1:]:
        assert all(
            torch.equal(first[name], value) for name, value in load_net(prototxt, path).state_dict().items()
        )
    assert "bn_conv1.variance" in np.load(chain[1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "a web page (HTML)"),
        (b"\x1f\x8b" + bytes(40), "compressed by gzip"),
        (b"\x93NUMPY\x01\x00" + bytes(40), "x.caffemodel"),
        (b"name: 'net'\nlayer {}\n", "a text file, expected weights"),
    ],
)
def test_what_is_no_weight_file_is_named(capsys, tmp_path, content, reason):
    (tmp_path / "x.caffemodel").write_bytes(content)
    status, _, err = convert(capsys, tmp_path / "x.caffemodel", tmp_path / "y.npz")
    assert (status, err.count("\n")) == (2, 1)
    assert reason in err
    assert not (tmp_path / "y.npz").exists()


def test_weights_of_another_net_name_the_layer_and_the_net_that_they_fit(capsys, tmp_path):
    status, _, err = convert(capsys, NET, CAFFE_FILES / "vgg16_largefov.caffemodel", tmp_path / "x.npz")
    assert (status, err.count("\n")) == (2, 1)
    assert re.search(r"layer 'fc6', blob '0' \(weight\): shape \(.*\) in the file, expected \(", err)
    assert err.endswith("; the file fits vgg16_largefov (num_classes 21, width_divisor 16)\n")


def test_a_layer_without_a_form_and_weights_that_lack_one(capsys, tmp_path):
    loss = tmp_path / "loss.prototxt"
    loss.write_text(
        NET.read_text() + 'layer { name: "e" type: "EuclideanLoss" bottom: "fc8" bottom: "fc8" top: "e" }'
    )
    for name, form in (("x.onnx", "exported to ONNX"), ("x.py", "written in plain PyTorch")):
        status, _, err = convert(capsys, loss, WEIGHTS, tmp_path / name)
        assert status == 2
        assert f"layer 'e' (EuclideanLoss): cannot be {form}" in err
        more = tmp_path / "more.prototxt"
        more.write_text(
            NET.read_text()
            + 'layer { name: "z" type: "InnerProduct" bottom: "fc8" top: "z" inner_product_param '
            "{ num_output: 2 } }"
        )
        assert "has no weights for z" in convert(capsys, more, WEIGHTS, tmp_path / name)[2]
        assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("ending", [".onnx", ".py", ".safetensors"])
def test_a_net_without_its_weights_is_told_where_they_go(capsys, tmp_path, ending):
    net, target = CAFFE_FILES / "vgg16_aspp_deploy.prototxt", tmp_path / f"out{ending}"
    assert run_command(["convert", str(net), str(target)]) == 2
    assert f"repro: {net}: a net, and its weights were expected" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
