"""The networks, blob by blob, against the DeepLab-v2 Caffe (golden/networks.h5, weights in golden/caffe_files)."""

from __future__ import annotations

import json
import re

import pytest
import torch

from parity_tests.conftest import CAFFE_FILES, assert_close
from parity_tests.tolerances import NETWORK_BLOB_REL
from repro.data import subtract_mean
from repro.errors import InputError
from repro.models import CaffeNet, build_model
from repro.models.folding import fold_batch_norm
from repro.parity import first_difference
from repro.solver import CaffeSGD
from weights_conversion import caffe_layers, load_caffe_weights, read_caffemodel, write_caffemodel
from weights_conversion.caffe_pb2 import NetParameter

NETS = ("vgg16_aspp", "vgg16_largefov", "vgg16_cam", "vgg16_bg", "resnet101_aspp")
V1 = ("vgg16_aspp", "vgg16_largefov")
ANY_SIZE = ("vgg16_aspp", "vgg16_largefov", "resnet101_aspp", "resnet101_largefov")
RECORDED = [
    *(("vgg16_aspp", size) for size in ("128x100", "241x241", "321x321", "401x401", "65x49", "97x130")),
    *(("vgg16_largefov", size) for size in ("321x321", "65x49", "97x130")),
    *(("resnet101_aspp", size) for size in ("321x321", "65x49", "97x130")),
    ("vgg16_cam", "321x321"),
    ("vgg16_bg", "321x321"),
]


def build(name: str, divisor: int = 16):
    return build_model(name, width_divisor=divisor).eval()


def recorded_net(name: str):
    model = build(name)
    load_caffe_weights(model, CAFFE_FILES / f"{name}.caffemodel")
    return model


def recording(golden, name: str, size: str):
    return golden("resnet101")[size] if name == "resnet101_aspp" else golden("networks")[name][size]


def images_of(recorded) -> torch.Tensor:
    return torch.from_numpy(subtract_mean(recorded["image_bgr"][()])[None])


def assert_same(model: CaffeNet, recorded) -> None:
    """Every recorded blob is the model's; at most sizes the scores alone are recorded."""
    difference = first_difference(model, recorded, tolerance=NETWORK_BLOB_REL, partial=True)
    assert difference is None, f"{difference}\n{difference.table}"


@pytest.mark.parametrize(("name", "version"), [*((n, "") for n in NETS), *((n, "_v1") for n in V1)])
def test_a_caffemodel_fills_every_layer(name, version):
    model = build(name)
    report = load_caffe_weights(model, CAFFE_FILES / f"{name}{version}.caffemodel")
    assert report.loaded == list(caffe_layers(model))
    assert report.missing == report.unused == []


@pytest.mark.parametrize("name", NETS)
def test_parameters_are_in_caffes_order(name):
    """Layer by layer, BatchNorm's three blobs and Scale's two after their convolution's: that of a solver state."""
    file = read_caffemodel(CAFFE_FILES / f"{name}.caffemodel").layers.values()
    caffes = [(layer.name, blob.shape) for layer in file for blob in layer.blobs]
    groups = build(name).param_groups()
    assert [(group["name"].rpartition(".")[0], tuple(group["params"][0].shape)) for group in groups] == caffes


@pytest.mark.parametrize("ending", [".caffemodel", ".caffemodel.h5"])
@pytest.mark.parametrize("name", NETS)
def test_round_trip_is_bit_exact(name, ending, tmp_path):
    """The original's file, our net, a file of ours: BatchNorm's three blobs are what they were, too."""
    write_caffemodel(recorded_net(name), tmp_path / f"net{ending}")
    original = read_caffemodel(CAFFE_FILES / f"{name}.caffemodel").layers
    written = read_caffemodel(tmp_path / f"net{ending}").layers
    assert set(written) == {layer for layer in original if original[layer].blobs}
    for layer, content in written.items():
        blobs = [(blob.shape, blob.tobytes()) for blob in content.blobs]
        assert blobs == [(blob.shape, blob.tobytes()) for blob in original[layer].blobs], layer


@pytest.mark.parametrize(("name", "size"), RECORDED)
def test_blobs(golden, name, size):
    recorded = recording(golden, name, size)
    model, images = recorded_net(name), images_of(recorded)
    assert_same(model, recorded)
    with torch.inference_mode():
        blobs = model.forward_blobs(images)
        scores = model(images)
    assert torch.equal(scores, blobs[model.scores_blob])
    assert scores.shape[2:] == (model.grid_size(*images.shape[2:]) if scores.ndim == 4 else ())
    if "shapes" in recorded:
        shapes = json.loads(recorded["shapes"][()])
        assert {blob: list(values.shape) for blob, values in blobs.items()} == shapes


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("name", "size"), [("vgg16_aspp", "65x49"), ("resnet101_aspp", "65x49"), ("vgg16_bg", "321x321")]
)
def test_blobs_on_cuda(golden, name, size):
    assert_same(recorded_net(name).cuda(), recording(golden, name, size))


def test_gradient_at_conv4_1(golden):
    """What background cues are made of: the absolute gradient's maximum over the channels."""
    recorded = golden("networks")["vgg16_bg"]["321x321"]
    model = recorded_net("vgg16_bg")
    gradient = model.gradient_at(images_of(recorded), "conv4_1")
    assert gradient.shape == (1, 32, 41, 41)
    largest = gradient[0].abs().amax(dim=0)
    assert_close(largest, recorded["conv4_1_grad_max"], NETWORK_BLOB_REL, "gradient", relative_to_max=True)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_largefov_head_is_one_branch_of_the_aspp_head():
    aspp, largefov = recorded_net("resnet101_aspp"), build("resnet101_largefov")
    state = {name: values for name, values in aspp.state_dict().items() if not name.startswith("fc1_voc12")}
    for kind in ("weight", "bias"):
        state[f"fc1_voc12.{kind}"] = aspp.state_dict()[f"fc1_voc12_c1.{kind}"]
    largefov.load_state_dict(state)
    images = torch.randn(1, 3, 65, 49, generator=torch.Generator().manual_seed(0)) * 50
    assert torch.equal(largefov(images), aspp.forward_blobs(images)["fc1_voc12_c1"])


@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 3), (321, 500)])
def test_any_size_runs_with_caffes_output_size(name, size):
    model = build(name, 64)
    assert model(torch.zeros(1, 3, *size)).shape[2:] == model.grid_size(*size)


@pytest.mark.parametrize("name", ["vgg16_cam", "vgg16_bg"])
def test_classifiers_are_built_for_one_size(name):
    model = build_model(name, width_divisor=64, num_classes=6, input_size=161).eval()
    assert model(torch.zeros(2, 3, 161, 161)).shape == (2, 6)
    assert model.grid_size(161, 161, "conv4_1") == (21, 21)
    with pytest.raises(InputError, match=f"{name}: expected images of 161x161, found 321x321"):
        model(torch.zeros(1, 3, 321, 321))


def test_batch_norm_divides_by_its_factor():
    layer = {"name": "norm", "type": "BatchNorm", "bottom": ["x"], "top": ["y"]}
    layer["batch_norm_param"] = {"use_global_stats": True}
    net = CaffeNet(NetParameter(input=["x"], input_shape=[{"dim": [1, 2, 1, 1]}], layer=[layer]))
    norm = net["norm"]
    x = torch.tensor([[[[3.0]], [[5.0]]]])
    for factor, mean, variance in ((4.0, (1.0, 3.0), (4.0, 0.25)), (0.0, (0.0, 0.0), (0.0, 0.0))):
        norm.factor.data.fill_(factor)
        norm.mean.data = torch.tensor(mean) * 4
        norm.variance.data = torch.tensor(variance) * 4
        want = [(value - m) / (v + 1e-5) ** 0.5 for value, m, v in zip((3, 5), mean, variance, strict=True)]
        assert_close(net.train()(x).flatten(), want, 1e-5, f"factor {factor}", relative_to_max=True)


def test_batch_norm_and_scale_stay_as_they_are_in_training():
    model = build_model("resnet101_aspp", width_divisor=16)
    load_caffe_weights(model, CAFFE_FILES / "resnet101_aspp.caffemodel")
    before = {name: values.clone() for name, values in model.state_dict().items()}
    solver = CaffeSGD(model, {"base_lr": 1e-4, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 5e-4})
    for _ in range(2):
        solver.zero_grad()
        model(
            torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(0)) * 50
        ).square().mean().backward()
        solver.step()
    frozen = re.compile(r"(bn|scale)")
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name]) == bool(frozen.match(name)), name
    # Caffe's solver states hold a history for every blob, these too
    assert len(solver.history) == len(before)


def test_folded_batch_norm_gives_the_same_scores(golden):
    net, images = recorded_net("resnet101_aspp"), images_of(golden("resnet101")["97x130"])
    folded = fold_batch_norm(net)
    assert not [name for name, _ in folded.named_modules() if name.startswith(("bn", "scale"))]
    assert len(net.layers) - len(folded.layers) == 2 * 104
    with torch.inference_mode():
        blobs, want = folded.forward_blobs(images), net.forward_blobs(images)
    for blob, values in want.items():
        assert_close(blobs[blob], values, NETWORK_BLOB_REL, blob, relative_to_max=True)
    assert net.get_submodule("conv1").bias is None


def test_names_of_the_copies_that_caffe_inserts():
    """And their values: a copy is what its reader read, before a layer in-place changed the blob."""
    layers = [
        {"name": "neg", "type": "Power", "bottom": ["data"], "top": ["x"], "power_param": {"scale": -1}},
        {"name": "left", "type": "Eltwise", "bottom": ["x", "data"], "top": ["l"]},
        {"name": "relu", "type": "ReLU", "bottom": ["x"], "top": ["x"]},
        {"name": "right", "type": "Slice", "bottom": ["x"], "top": ["r", "s"]},
        {"name": "end", "type": "Eltwise", "bottom": ["s", "s"], "top": ["e"]},
    ]
    net = CaffeNet(NetParameter(input=["data"], input_shape=[{"dim": [1, 2]}], layer=layers))
    data = torch.tensor([[1.0, -2.0]])
    blobs = net.forward_blobs(data)
    copies = {name: blob for name, blob in blobs.items() if "_split_" in name}
    assert {name: blob.flatten().tolist() for name, blob in copies.items()} == {
        "data_input_0_split_0": [1, -2],
        "data_input_0_split_1": [1, -2],
        "x_neg_0_split_0": [-1, 2],
        "x_neg_0_split_1": [-1, 2],
        "s_right_1_split_0": [2],
        "s_right_1_split_1": [2],
    }
    assert blobs["x"].tolist() == [[0, 2]]


@pytest.mark.parametrize("filler", ["msra", "looks_linear"])
@pytest.mark.parametrize("name", ["resnet101_aspp", "vgg16_bg", "vgg16_cam"])
def test_signals_keep_their_size_from_scratch(name, filler):
    model = build_model(name, width_divisor=16, input_size=65).eval()
    model.fill(filler, torch.Generator().manual_seed(0))
    last = {"resnet101_aspp": "res5c", "vgg16_bg": "fc7", "vgg16_cam": "fc7_CAM"}[name]
    images = torch.randn(1, 3, 65, 65, generator=torch.Generator().manual_seed(1)) * 50
    with torch.inference_mode():
        signal = model.forward_blobs(images)[last].std()
    assert 0.5 < signal < 500


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
    groups = {
        group["name"]: (group["lr_mult"], group["decay_mult"])
        for group in build_model("resnet101_aspp", width_divisor=64).param_groups()
    }
    assert groups["conv1.weight"] == groups["res4b22_branch2c.weight"] == (1, 1)
    for blob in (
        "bn_conv1.mean",
        "bn_conv1.variance",
        "bn_conv1.factor",
        "scale_conv1.weight",
        "scale_conv1.bias",
    ):
        assert groups[blob] == (0, 0)
    assert (groups["fc1_voc12_c3.weight"], groups["fc1_voc12_c3.bias"]) == ((10, 1), (20, 0))


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
