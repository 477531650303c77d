"""The networks, blob by blob, against the DeepLab-v2 Caffe (golden/networks.h5, weights in golden/caffe_files)."""

from __future__ import annotations

import json

import pytest
import torch

from parity_tests.conftest import CAFFE_FILES, assert_close
from parity_tests.tolerances import NETWORK_BLOB_REL
from repro.data import subtract_mean
from repro.errors import InputError
from repro.models import build_model
from weights_conversion import load_caffe_weights

NETS = ("vgg16_aspp", "vgg16_largefov")
SIZES = [
    *(("vgg16_aspp", size) for size in ("128x100", "241x241", "321x321", "401x401", "65x49", "97x130")),
    *(("vgg16_largefov", size) for size in ("321x321", "65x49", "97x130")),
]


def build(name: str, divisor: int = 16):
    return build_model(name, width_divisor=divisor).eval()


@pytest.mark.parametrize("version", ["", "_v1"])
@pytest.mark.parametrize("name", NETS)
def test_a_caffemodel_fills_every_layer(name, version):
    model = build(name)
    report = load_caffe_weights(model, CAFFE_FILES / f"{name}{version}.caffemodel")
    assert report.loaded == [layer for layer, child in model.named_children() if hasattr(child, "weight")]
    assert report.missing == report.unused == []


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_blobs(golden, name, size):
    recorded = golden("networks")[name][size]
    model = build(name)
    load_caffe_weights(model, CAFFE_FILES / f"{name}.caffemodel")
    images = torch.from_numpy(subtract_mean(recorded["image_bgr"][()])[None])
    with torch.inference_mode():
        blobs = model.forward_blobs(images)
        scores = model(images)
    assert torch.equal(scores, blobs["fc8-SEC"])
    for blob, values in recorded["blobs"].items():
        assert_close(blobs[blob], values, NETWORK_BLOB_REL, f"{name} {size} {blob}", relative_to_max=True)
    shapes = json.loads(recorded["shapes"][()])
    assert {blob: list(values.shape) for blob, values in blobs.items()} == shapes


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 3), (321, 500)])
def test_any_size_runs_with_caffes_output_size(name, size):
    model = build(name, 64)
    assert model(torch.zeros(1, 3, *size)).shape[2:] == model.grid_size(*size)


def test_fillers_and_multipliers():
    model = build_model("vgg16_aspp", width_divisor=4)
    conv = model.get_submodule("conv5_1")
    assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not conv.bias.any()
    model.fill("msra", torch.Generator().manual_seed(1))
    assert conv.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.05)
    assert model.get_submodule("fc8-SEC_1").weight.std().item() == pytest.approx(0.01, rel=0.05)
    groups = {group["name"]: (group["lr_mult"], group["decay_mult"]) for group in model.param_groups()}
    assert groups["conv1_1.weight"] == (1, 1)
    assert groups["fc7_3.bias"] == (2, 0)
    assert groups["fc8-SEC_4.weight"] == (10, 1)
    assert groups["fc8-SEC_4.bias"] == (20, 0)
    assert list(groups) == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("divisor", [1, 16, 21])
def test_looks_linear_starts_as_a_linear_map(divisor):
    """Up to the first pooling the pairs w, -w make the net linear: f(2x) = 2 f(x) would hold for ReLU too, but the
    difference of a pair does not lose sign. And no filter is left at zero, at odd widths either."""
    model = build_model("vgg16_largefov", width_divisor=divisor)
    model.fill("looks_linear", torch.Generator().manual_seed(0))
    for name, module in model.named_children():
        if hasattr(module, "weight"):
            assert module.weight.flatten(1).any(dim=1).all(), name
    if divisor != 16:
        return
    images = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    first, second = (model.forward_blobs(x)["conv1_2"] for x in (images, -images))
    half = first.shape[1] // 2
    signed = [blob[:, :half] - blob[:, half:] for blob in (first, second)]
    assert_close(signed[1], -signed[0], 1e-5, "linear in the image")


def test_dropout_only_trains():
    model = build_model("vgg16_largefov", width_divisor=16, dropout=0.5)
    images = torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(0)) * 50
    model.fill("msra")
    training, testing = (model.train(mode).forward_blobs(images)["fc6"] for mode in (True, False))
    assert (training == 0).float().mean() > (testing == 0).float().mean() + 0.1
    assert torch.equal(model(images), model(images))


def test_unknown_names_and_widths():
    with pytest.raises(InputError, match=r"model\.name .vgg19.: expected one of vgg16_aspp"):
        build_model("vgg19")
    with pytest.raises(InputError, match="width_divisor 65"):
        build_model("vgg16_aspp", width_divisor=65)
