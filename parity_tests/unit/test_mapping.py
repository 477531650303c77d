"""Copying weights by layer name: what is copied, what is reported, what is refused."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from parity_tests.conftest import CAFFE_FILES
from repro.models import build_model
from weights_conversion import (
    CaffeFileError,
    caffe_layers,
    caffe_pb2,
    load_caffe_weights,
    load_weights,
    read_caffemodel,
    save_safetensors,
    write_caffemodel,
)


class BatchNorm(nn.Module):
    """A layer that names its own blobs, as ResNet's BatchNorm must."""

    caffe_type = "BatchNorm"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("factor", torch.ones(1))

    def caffe_blobs(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, "variance": self.variance, "factor": self.factor}


def net(**modules: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, module in modules.items():
        model.add_module(name, module)
    return model


def small(seed: int = 0, **more: nn.Module) -> nn.Module:
    torch.manual_seed(seed)
    model = net(conv=nn.Conv2d(3, 4, 3), bn=BatchNorm(4), relu=nn.ReLU(), ip=nn.Linear(6, 5), **more)
    for tensor in tensors(model).values():
        with torch.no_grad():
            tensor.normal_()
    return model


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    views = caffe_layers(model)
    return {f"{layer}.{name}": t for layer, view in views.items() for name, t in view.tensors.items()}


def values(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors(model).items()}


def write(path, **layers) -> None:
    """A weight file with the given arrays, a list a layer; arrays of four axes under "old" stay legacy."""
    net_message = caffe_pb2.NetParameter()
    for name, arrays in layers.items():
        layer = net_message.layer.add(name=name)
        for array in arrays:
            old, array = (True, array[1]) if isinstance(array, tuple) else (False, array)
            blob = layer.blobs.add(data=array.reshape(-1))
            if old:
                blob.num, blob.channels, blob.height, blob.width = array.shape
            else:
                blob.shape.dim.extend(array.shape)
    path.write_bytes(net_message.SerializeToString())


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


FORMS = ["x.caffemodel", "x.caffemodel.h5", "x.safetensors"]


def save(model: nn.Module, path) -> None:
    (save_safetensors if path.suffix == ".safetensors" else write_caffemodel)(model, path)


# --- models as Caffe layers -------------------------------------------------------------------------------


def test_layers_of_a_model():
    model = net(
        stem=net(conv1_1=nn.Conv2d(3, 4, 3), relu=nn.ReLU()),
        bn=BatchNorm(4),
        scores=nn.Linear(4, 2, bias=False),
    )
    views = caffe_layers(model)
    assert [(name, view.type, list(view.tensors)) for name, view in views.items()] == [
        ("conv1_1", "Convolution", ["weight", "bias"]),
        ("bn", "BatchNorm", ["mean", "variance", "factor"]),
        ("scores", "InnerProduct", ["weight"]),
    ]
    assert views["conv1_1"].tensors["weight"] is model.stem.conv1_1.weight


def test_models_that_have_no_caffe_form():
    with pytest.raises(TypeError, match=r"'a\.norm' \(LayerNorm\)"):
        caffe_layers(net(a=net(norm=nn.LayerNorm(3))))
    with pytest.raises(ValueError, match=r"'conv', the second is 'b\.conv'"):
        caffe_layers(net(a=net(conv=nn.Conv2d(1, 1, 1)), b=net(conv=nn.Conv2d(1, 1, 1))))


# --- round trips and reports ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_round_trip_is_bit_exact(tmp_path, form):
    source, target = small(1), small(2)
    with torch.no_grad():
        source.conv.weight.view(-1)[:4] = torch.tensor([3.4e38, -0.0, 1e-42, -3.4e38])
    save(source, tmp_path / form)
    report = load_weights(target, tmp_path / form)
    assert values(target) == values(source)
    assert report.loaded == ["conv", "bn", "ip"]
    assert report.missing == report.unused == []
    assert report.spread == {}
    assert report.path == str(tmp_path / form)


@pytest.mark.parametrize("form", FORMS)
def test_layers_that_one_side_lacks_are_reported(tmp_path, form):
    save(small(1, old=nn.Linear(2, 2)), tmp_path / form)
    target = small(2, new=nn.Linear(3, 3))
    before = values(target)
    report = load_weights(target, tmp_path / form)
    assert (report.loaded, report.missing, report.unused) == (["conv", "bn", "ip"], ["new"], ["old"])
    assert values(target)["new.weight"] == before["new.weight"]
    text = str(report)
    assert "loaded 3 of 4 layers" in text
    assert "kept as they were: new" in text
    assert "ignored: old" in text
    with pytest.raises(AttributeError):
        report.loaded = []


def test_layers_without_blobs_are_not_called_unused(tmp_path):
    write(tmp_path / "x.caffemodel", relu1=[], ip=[ramp(5, 6), ramp(5)], pool=[])
    assert load_caffe_weights(small(), tmp_path / "x.caffemodel").unused == []


def test_values_go_to_the_models_dtype_and_layout(tmp_path):
    source = small(1)
    save(source, tmp_path / "x.caffemodel")
    target = small(2).to(torch.bfloat16).to(memory_format=torch.channels_last)
    load_weights(target, tmp_path / "x.caffemodel")
    assert torch.equal(target.conv.weight, source.conv.weight.to(torch.bfloat16))
    assert target.conv.weight.requires_grad


def test_file_without_a_known_suffix_is_told_by_its_content(tmp_path):
    for form in FORMS:
        save(small(1), tmp_path / form)
        renamed = (tmp_path / form).rename(tmp_path / f"weights{FORMS.index(form)}")
        assert load_weights(small(2), renamed).missing == []


# --- what differs is refused, and nothing is half loaded --------------------------------------------------

W, B = ramp(5, 6), ramp(5)


@pytest.mark.parametrize(
    ("blobs", "reason"),
    [
        ([W], "1 blobs in the file .0., 2 in the model .weight, bias."),
        ([], "0 blobs in the file .none., 2 in the model"),
        ([W, B, B], "3 blobs in the file .0, 1, 2., 2 in the model"),
        ([W.T, B], r"blob '0' .weight.: shape .6, 5. in the file, expected .5, 6."),
        ([W, ramp(6)], r"blob '1' .bias.: shape .6,. in the file, expected .5,."),
        ([W.reshape(30), B], r"shape .30,. in the file"),
        ([W.reshape(1, 1, 5, 6), B], r"shape .1, 1, 5, 6. in the file"),  # a shape of today, not an old one
        ([("old", W.reshape(5, 6, 1, 1)), B], r"shape .5, 6, 1, 1. in the file"),
        ([("old", W.reshape(1, 1, 6, 5)), B], r"shape .1, 1, 6, 5. in the file"),
        ([W, ("old", B.reshape(5, 1, 1, 1))], r"shape .5, 1, 1, 1. in the file"),
    ],
)
def test_blobs_that_differ(tmp_path, blobs, reason):
    path = tmp_path / "x.caffemodel"
    write(path, conv=[ramp(4, 3, 3, 3), ramp(4)], ip=blobs)
    model = small()
    before = values(model)
    with pytest.raises(CaffeFileError, match=reason) as caught:
        load_caffe_weights(model, path)
    assert str(path) in str(caught.value)
    assert "layer 'ip'" in str(caught.value)
    assert values(model) == before


def test_old_shapes_match_with_leading_ones(tmp_path):
    old = {
        "conv": [("old", ramp(4, 3, 3, 3)), ("old", ramp(1, 1, 1, 4))],
        "bn": [("old", ramp(1, 1, 1, 4)), ("old", ramp(1, 1, 1, 4)), ("old", ramp(1, 1, 1, 1))],
        "ip": [("old", ramp(1, 1, 5, 6)), ("old", ramp(1, 1, 1, 5))],
    }
    write(tmp_path / "x.caffemodel", **old)
    model = small()
    assert load_caffe_weights(model, tmp_path / "x.caffemodel").missing == []
    np.testing.assert_array_equal(model.ip.weight.detach(), ramp(5, 6))
    np.testing.assert_array_equal(model.ip.bias.detach(), ramp(5))
    np.testing.assert_array_equal(model.bn.factor, [0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ip.bias": None}, r"1 blobs in the file .weight., 2 in the model .weight, bias."),
        ({"ip.scale": torch.zeros(1)}, r"3 blobs in the file .bias, scale, weight."),
        (
            {"ip.weight": torch.zeros(6, 5)},
            r"blob 'weight' .weight.: shape .6, 5. in the file, expected .5, 6.",
        ),
        ({"ip.weight": torch.zeros(1, 1, 5, 6)}, r"shape .1, 1, 5, 6. in the file"),
        ({"ip.weight": torch.zeros(5, 6, dtype=torch.int32)}, "torch.int32; expected float32, float16, "),
    ],
)
def test_safetensors_that_differ(tmp_path, change, reason):
    path = tmp_path / "x.safetensors"
    content = {**{k: t.detach() for k, t in tensors(small(1)).items()}, **change}
    save_file({key: tensor for key, tensor in content.items() if tensor is not None}, path)
    model = small(2)
    before = values(model)
    with pytest.raises(CaffeFileError, match=reason) as caught:
        load_weights(model, path)
    assert str(path) in str(caught.value)
    assert "layer 'ip'" in str(caught.value) or ": ip.weight: " in str(caught.value)
    assert values(model) == before


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged"),
        (b"text, not tensors", "damaged"),
        (struct.pack("<Q", 1 << 60) + b"{}", "damaged"),
        (struct.pack("<Q", 2) + b"{}", "no tensors"),
    ],
)
def test_damaged_safetensors(tmp_path, data, reason):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CaffeFileError, match=rf"x\.safetensors: {reason}"):
        load_weights(small(), tmp_path / "x.safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_missing_file(tmp_path, form):
    with pytest.raises(CaffeFileError, match="No such file"):
        load_weights(small(), tmp_path / form)


def test_mutated_safetensors_load_or_raise(tmp_path):
    save_safetensors(small(1), tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    rng = random.Random(3)
    raised = 0
    for _ in range(200):
        mutated = bytearray(data)
        mutated[rng.randrange(len(data) // 2)] = rng.randrange(256)
        (tmp_path / "x.safetensors").write_bytes(mutated[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            load_weights(small(2), tmp_path / "x.safetensors")
        except CaffeFileError:
            raised += 1
    assert raised > 50


def test_safetensors_metadata_and_keys(tmp_path):
    path = tmp_path / "x.safetensors"
    save_safetensors(small(1), path, metadata={"iteration": "15"})
    assert set(load_file(path)) == set(tensors(small(1)))
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"iteration": "15"}
    with pytest.raises(TypeError, match="strings"):
        save_safetensors(small(1), path, metadata={"iteration": 15})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


# --- LargeFOV's fc6 and fc7 for every branch of ASPP ------------------------------------------------------


def branches(*own: str) -> nn.Module:
    names = [f"{layer}_{b}" for layer in ("fc6", "fc7") for b in (1, 2, 3, 4)] + ["fc6_5", "fc8_1", *own]
    return net(**{name: nn.Linear(3, 3) for name in names})


@pytest.mark.parametrize("form", FORMS)
def test_spread(tmp_path, form):
    source = net(fc6=nn.Linear(3, 3), fc6_2=nn.Linear(3, 3), fc7=nn.Linear(3, 3), fc8=nn.Linear(3, 3))
    save(source, tmp_path / form)
    model = branches()
    report = load_weights(model, tmp_path / form, spread_branches=True)
    assert report.spread == {
        "fc6_1": "fc6",
        "fc6_3": "fc6",
        "fc6_4": "fc6",
        **{f"fc7_{b}": "fc7" for b in (1, 2, 3, 4)},
    }
    assert report.loaded == [f"{layer}_{b}" for layer in ("fc6", "fc7") for b in (1, 2, 3, 4)]
    assert report.missing == ["fc6_5", "fc8_1"]
    assert report.unused == ["fc8"]
    assert "fc6 -> fc6_1" in str(report)
    assert torch.equal(model.fc6_1.weight, source.fc6.weight)
    assert torch.equal(model.fc6_2.weight, source.fc6_2.weight)
    assert torch.equal(model.fc7_4.bias, source.fc7.bias)
    with torch.no_grad():
        model.fc7_1.weight.zero_()
    assert torch.equal(model.fc7_2.weight, source.fc7.weight)  # copies, not one tensor


def test_no_spread_unless_asked(tmp_path):
    save(net(fc6=nn.Linear(3, 3), fc6_2=nn.Linear(3, 3)), tmp_path / "x.caffemodel")
    report = load_weights(branches(), tmp_path / "x.caffemodel")
    assert report.loaded == ["fc6_2"]
    assert report.unused == ["fc6"]
    assert report.spread == {}


def test_spread_layer_that_does_not_fit_is_named(tmp_path):
    save(net(fc6=nn.Linear(4, 3)), tmp_path / "x.caffemodel")
    with pytest.raises(CaffeFileError, match=r"layer 'fc6' for 'fc6_1', blob '0'"):
        load_weights(branches(), tmp_path / "x.caffemodel", spread_branches=True)


# --- the recorded nets ------------------------------------------------------------------------------------


def built(name: str) -> nn.Module:
    return build_model(name, num_classes=21, width_divisor=16)


@pytest.mark.parametrize(
    ("net_name", "file"),
    [
        ("vgg16_aspp", "vgg16_aspp"),
        ("vgg16_aspp", "vgg16_aspp_v1"),
        ("vgg16_aspp", "stage1_init"),
        ("vgg16_aspp", "stage1_iter_15"),
        ("vgg16_largefov", "vgg16_largefov"),
        ("vgg16_largefov", "vgg16_largefov_v1"),
    ],
)
def test_recorded_net_loads_whole(tmp_path, net_name, file):
    path = CAFFE_FILES / f"{file}.caffemodel"
    model = built(net_name)
    report = load_caffe_weights(model, path)
    assert report.missing == report.unused == []
    recorded = {name: layer for name, layer in read_caffemodel(path).layers.items() if layer.blobs}
    assert report.loaded == list(recorded)
    for name, view in caffe_layers(model).items():
        for tensor, blob in zip(view.tensors.values(), recorded[name].blobs, strict=True):
            assert tensor.detach().numpy().tobytes() == blob.tobytes(), name
    write_caffemodel(model, tmp_path / "again.caffemodel")
    again = read_caffemodel(tmp_path / "again.caffemodel").layers
    for name, layer in recorded.items():
        assert again[name].type == layer.type
        for a, b in zip(again[name].blobs, layer.blobs, strict=True):
            assert a.tobytes() == b.tobytes(), name


@pytest.mark.parametrize("file", ["vgg16_largefov", "vgg16_largefov_v1"])
def test_recorded_largefov_spreads_over_aspp(file):
    model = built("vgg16_aspp")
    report = load_caffe_weights(model, CAFFE_FILES / f"{file}.caffemodel", spread_branches=True)
    assert report.spread == {f"{layer}_{b}": layer for b in (1, 2, 3, 4) for layer in ("fc6", "fc7")}
    assert report.missing == [f"fc8-SEC_{b}" for b in (1, 2, 3, 4)]
    assert report.unused == ["fc8-SEC"]
    views, source = caffe_layers(model), caffe_layers(built("vgg16_largefov"))
    single = read_caffemodel(CAFFE_FILES / f"{file}.caffemodel").layers
    for name, layer in report.spread.items():
        assert list(views[name].tensors) == list(source[layer].tensors)
        for tensor, blob in zip(views[name].tensors.values(), single[layer].blobs, strict=True):
            assert tensor.detach().numpy().tobytes() == blob.tobytes()


def test_net_of_another_width_is_refused():
    model = build_model("vgg16_aspp", num_classes=21, width_divisor=8)
    with pytest.raises(
        CaffeFileError, match=r"vgg16_aspp\.caffemodel: layer 'conv1_1', blob '0' .weight.: shape"
    ):
        load_caffe_weights(model, CAFFE_FILES / "vgg16_aspp.caffemodel")
