"""``repro convert`` with prototxts and its check against OpenCV's Caffe importer."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from parity_tests.conftest import CAFFE_FILES
from repro.cli import run_command
from repro.errors import InputError
from repro.models import build_model
from repro.models.folding import fold_batch_norm
from repro.training.prototxts import deploy_prototxt
from weights_conversion import (
    load_caffe_weights,
    read_prototxt,
    write_prototxt,
)
from weights_conversion.importer import check_conversion, check_with_opencv, random_images, read_images
from weights_conversion.net_comparison import compare_nets

NETS = ("vgg16_aspp", "vgg16_largefov", "vgg16_cam", "vgg16_bg", "resnet101_aspp")


def convert(capsys, *arguments) -> tuple[int, str, str]:
    status = run_command(["convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def files(name: str):
    return CAFFE_FILES / f"{name}_deploy.prototxt", CAFFE_FILES / f"{name}.caffemodel"


@pytest.mark.parametrize("name", NETS)
def test_every_blob_of_the_recorded_files(name):
    pytest.importorskip("cv2")
    prototxt, caffemodel = files(name)
    net = build_model(name, width_divisor=16)
    report = load_caffe_weights(net, caffemodel)
    found = check_conversion(net, report, prototxt, random_images(net))
    assert [str(check) for check in found.checks if not check.relative <= found.tolerance] == []
    assert {check.blob for check in found.checks} == {layer.top for layer in net.layers}
    assert found.only_net == found.only_prototxt == []
    assert net.training  # as it was


def test_a_layer_that_differs_is_found(tmp_path):
    """One weight of conv3_2 is off: everything above agrees, and the table points at it."""
    pytest.importorskip("cv2")
    prototxt, caffemodel = files("vgg16_largefov")
    net = build_model("vgg16_largefov", width_divisor=16)
    load_caffe_weights(net, caffemodel)
    with torch.no_grad():
        net.get_submodule("conv3_2").weight[0, 0, 1, 1] += 0.01
    found = check_with_opencv(net, prototxt, caffemodel, random_images(net))
    first = found.first_over
    assert (first.layer, first.blob) == ("relu3_2", "conv3_2")
    lines = found.lines()
    assert lines[-1] == "first over 1e-05: layer relu3_2, blob conv3_2"
    assert re.search(r"relu3_1 +conv3_1 +1x16x81x81 +\d\.\d\de-0\d +\d\.\d\de-0\d$", "\n".join(lines), re.M)
    assert re.search(r"^relu3_2 .* over, on noise \d+x\d+$", "\n".join(lines), re.M)


def test_blobs_of_one_side_are_listed(tmp_path):
    pytest.importorskip("cv2")
    prototxt, caffemodel = files("vgg16_largefov")
    text = prototxt.read_text() + 'layer { name: "prob" type: "Softmax" bottom: "fc8-SEC" top: "prob" }'
    (tmp_path / "n.prototxt").write_text(text)
    net = build_model("vgg16_largefov", width_divisor=16)
    load_caffe_weights(net, caffemodel)
    found = check_with_opencv(net, tmp_path / "n.prototxt", caffemodel, random_images(net))
    assert (found.only_prototxt, found.only_net, found.first_over) == (["prob"], [], None)
    assert "only in the prototxt, not compared: prob" in found.lines()
    layers = text.split("\nlayer")
    (tmp_path / "n.prototxt").write_text("\nlayer".join(layers[:20]))
    found = check_with_opencv(net, tmp_path / "n.prototxt", caffemodel, random_images(net))
    assert found.only_net[-2:] == ["fc7", "fc8-SEC"]
    assert found.first_over is None


def test_a_folded_net_is_a_caffe_net_too(tmp_path):
    pytest.importorskip("cv2")
    net = build_model("resnet101_aspp", width_divisor=16)
    report = load_caffe_weights(net, CAFFE_FILES / "resnet101_aspp.caffemodel")
    folded = fold_batch_norm(net)
    write_prototxt(deploy_prototxt(folded), tmp_path / "folded.prototxt")
    changed = type(report)(report.path, report.loaded, [], [], changes=["folded"])
    found = check_conversion(folded, changed, tmp_path / "folded.prototxt", random_images(folded))
    assert found.first_over is None
    assert len(found.checks) == 143


def test_images_keep_their_size_where_the_net_takes_any(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    largefov = build_model("vgg16_largefov", width_divisor=64)
    blob = read_images(largefov, {"a": tmp_path / "a.png"})["a"]
    assert np.array_equal(blob[0, 0] + 104, picture[:, :, 2])
    cam = build_model("vgg16_cam", width_divisor=64, input_size=65)
    assert read_images(cam, {"a": tmp_path / "a.png"})["a"].shape == (1, 3, 65, 65)


def test_convert_writes_prototxts_and_checks(capsys, tmp_path):
    pytest.importorskip("cv2")
    picture = np.random.default_rng(0).integers(0, 256, (80, 95, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    deploy, train = tmp_path / "deploy.prototxt", tmp_path / "train.prototxt"
    status, out, _ = convert(
        capsys,
        *(CAFFE_FILES / "vgg16_largefov_v1.caffemodel", tmp_path / "n.safetensors", "--to", "vgg16_aspp"),
        *(
            "--width-divisor",
            16,
            "--prototxt",
            deploy,
            "--train-prototxt",
            train,
            "--config",
            "dsrg_vgg16_voc",
        ),
        *("--check", deploy, "--images", tmp_path / "a.png"),
    )
    assert status == 0, out
    lines = out.splitlines()
    assert lines[1:4] == [str(tmp_path / "n.safetensors"), str(deploy), str(train)]
    assert re.match(r"32 blobs agree within 1e-05 of their largest value; the furthest is \S+, \d", lines[-1])
    assert (
        compare_nets(read_prototxt(deploy), deploy_prototxt(build_model("vgg16_aspp", width_divisor=16)))
        == []
    )
    assert [layer.one("name") for layer in read_prototxt(train).layers][-2:] == [
        "loss-Seed",
        "loss-Constrain",
    ]


def test_convert_ends_with_status_1_where_a_blob_differs(capsys, tmp_path):
    """The prototxt has another dilation than the net."""
    pytest.importorskip("cv2")
    prototxt, caffemodel = files("vgg16_largefov")
    net = read_prototxt(prototxt)
    (fc6,) = (layer for layer in net.layers if layer.one("name") == "fc6")
    fc6["convolution_param"][0]["dilation"] = [6]
    fc6["convolution_param"][0]["pad"] = [6]
    write_prototxt(net, tmp_path / "n.prototxt")
    arguments = (caffemodel, tmp_path / "n.safetensors", "--to", "vgg16_largefov", "--width-divisor", 16)
    status, out, _ = convert(capsys, *arguments, "--check", tmp_path / "n.prototxt")
    assert status == 1
    assert out.splitlines()[-1] == "first over 1e-05: layer drop6, blob fc6"
    assert convert(capsys, *arguments, "--check", tmp_path / "n.prototxt", "--tolerance", 10)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ["--check", CAFFE_FILES / "stage1_train.prototxt"],
            "layer Input is of type ImageData; a check takes",
        ),
        (["--check", CAFFE_FILES / "vgg16_aspp_deploy.prototxt"], "OpenCV cannot import this net: "),
        (["--check", "none.prototxt"], "none.prototxt: No such file or directory"),
        (["--train-prototxt", "t.prototxt"], "t.prototxt: say with --config by which profile the net trains"),
        (["--config", "sec_vgg16_voc"], "--config sec_vgg16_voc: goes with --train-prototxt"),
        (["--images", "photos"], "--images photos: goes with --check"),
        (
            ["--train-prototxt", "t.prototxt", "--config", "sec_vgg16_voc", "--stage", 2],
            "sec_vgg16_voc: has no section stage2",
        ),
    ],
)
def test_bad_requests_are_one_line(capfd, tmp_path, monkeypatch, arguments, reason):
    pytest.importorskip("cv2")
    monkeypatch.chdir(tmp_path)
    source = CAFFE_FILES / "vgg16_largefov.caffemodel"
    fixed = (source, "n.safetensors", "--to", "vgg16_largefov", "--width-divisor", 16)
    status, _, err = convert(capfd, *fixed, *arguments)  # OpenCV's own lines too
    assert status == 2
    assert reason in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*.prototxt"))


def test_without_opencv_one_line_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    prototxt, caffemodel = files("vgg16_largefov")
    status, _, err = convert(
        capsys,
        *(caffemodel, tmp_path / "n.safetensors", "--to", "vgg16_largefov", "--width-divisor", 16),
        *("--check", prototxt),
    )
    assert status == 2
    assert "pip install 'sec-dsrg-repro[check]'" in err
    assert err.count("\n") == 1


def test_a_net_with_no_blob_in_common_is_refused(tmp_path):
    pytest.importorskip("cv2")
    (tmp_path / "n.prototxt").write_text(
        'input: "x" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 } layer { name: "p" type: "ReLU" bottom: "x" top: "p" }'
    )
    net = build_model("vgg16_largefov", width_divisor=64)
    _, caffemodel = files("vgg16_largefov")
    with pytest.raises(InputError, match="none of its blobs is in vgg16_largefov"):
        check_with_opencv(net, tmp_path / "n.prototxt", caffemodel, random_images(net))
