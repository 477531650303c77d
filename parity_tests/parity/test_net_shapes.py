"""Blob shapes of nets as built against those that Caffe reported, and what ``repro inspect`` prints of a prototxt."""

from __future__ import annotations

import json
import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from parity_tests.conftest import CAFFE_FILES
from repro.cli import run_command
from repro.config import load_config
from repro.errors import InputError
from repro.models import CLASSIFIERS, SEGMENTATION_NETS, build_model, load_net
from repro.models.inspection import describe_file
from repro.models.summary import summarise
from repro.training.prototxts import deploy_prototxt, train_prototxt
from weights_conversion import Message, caffe_layers, format_prototxt, read_prototxt
from weights_conversion.caffe_pb2 import NetParameter
from weights_conversion.lift import lift

NETS = ("vgg16_aspp", "vgg16_largefov", "vgg16_cam", "vgg16_bg")


@pytest.fixture
def shapes_of(tmp_path):
    """The shapes of a prototxt given as text: of the net's blobs as built."""

    def built(text: str):
        (tmp_path / "n.prototxt").write_text(text)
        return load_net(tmp_path / "n.prototxt", phase="train").shapes

    return built


def as_net(message: Message):
    return load_net(lift(message, NetParameter, ""), phase="train")


@pytest.mark.parametrize("name", NETS)
def test_shapes_are_the_recorded_ones(golden, name):
    net = read_prototxt(CAFFE_FILES / f"{name}_deploy.prototxt")
    for size, recorded in golden("networks")[name].items():
        net["input_shape"][0]["dim"] = [1, 3, *map(int, size.split("x"))]
        shapes = {blob: list(shape) for blob, shape in as_net(net).shapes.items()}
        assert shapes == json.loads(recorded["shapes"][()]), size


@pytest.mark.parametrize("name", [*SEGMENTATION_NETS, *CLASSIFIERS])
def test_shapes_are_our_nets_own(name):
    net = build_model(name, width_divisor=16, input_size=65)
    written = as_net(deploy_prototxt(net))
    with torch.inference_mode():
        blobs = net.eval().forward_blobs(torch.zeros(1, 3, 65, 65))
    assert written.shapes == {blob: tuple(values.shape) for blob, values in blobs.items()}
    parameters = {
        name: [tensor.shape for tensor in view.tensors.values()] for name, view in caffe_layers(net).items()
    }
    assert {name: [blob.shape for blob in blobs] for name, blobs in written.params.items()} == parameters


@pytest.mark.parametrize("recorded", ["stage1_train", "retrain_train"])
def test_train_nets(recorded):
    shapes = load_net(CAFFE_FILES / f"{recorded}.prototxt", phase="train").shapes
    if recorded == "stage1_train":
        expected = {"images_origin": (3, 3, 321, 321), "image_ids": (3,), "labels": (3, 1, 1, 21)}
        expected |= {"cues": (3, 21, 41, 41), "fc8-SEC-CRF-log": (3, 21, 41, 41), "cues-new": (3, 21, 41, 41)}
        # the probabilities have four readers
        expected |= {"fc8-SEC-Softmax_Softmax_0_split_3": (3, 21, 41, 41), "loss-Seed": ()}
    else:
        expected = {"images": (2, 3, 321, 321), "label": (2, 1, 321, 321), "label_shrink": (2, 1, 41, 41)}
        expected |= {"loss": (), "accuracy": (1, 1, 1, 3), "fc8-SEC_fc8-SEC_0_split_1": (2, 21, 41, 41)}
    assert {blob: shapes[blob] for blob in expected} == expected


def test_our_train_nets_have_no_unknown_layer():
    sec = load_config("sec_vgg16_voc").stage1
    coco = load_config("dsrg_vgg16_coco").stage1
    for net, section, classes in (
        ("vgg16_largefov", sec, 21),
        ("vgg16_aspp", coco, 81),
        ("resnet101_aspp", coco, 81),
    ):
        written = train_prototxt(build_model(net, num_classes=classes, width_divisor=64), section)
        assert [layer.note for layer in summarise(written).layers if layer.note] == []


DATA = 'input: "x" input_dim: 2 input_dim: 6 input_dim: 10 input_dim: 7\n'


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        # without padding Caffe does not drop the last window
        ('type: "Pooling" pooling_param { kernel_size: 2 stride: 3 }', (2, 6, 4, 3)),
        ('type: "Pooling" pooling_param { kernel_size: 3 stride: 2 pad: 1 }', (2, 6, 6, 4)),
        ('type: "Pooling" pooling_param { kernel_size: 3 stride: 2 round_mode: FLOOR }', (2, 6, 4, 3)),
        (
            'type: "Pooling" pooling_param { kernel_h: 2 kernel_w: 1 stride: 2 pad_h: 1 pad_w: 0 }',
            (2, 6, 6, 4),
        ),
        ('type: "Pooling" pooling_param { global_pooling: true }', (2, 6, 1, 1)),
        (
            'type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 hole: 2 group: 2 }',
            (2, 4, 6, 3),
        ),
        (
            'type: "Convolution" convolution_param { num_output: 4 kernel_size: [3, 1] pad: [0, 2] }',
            (2, 4, 8, 11),
        ),
        (
            'type: "Deconvolution" convolution_param { num_output: 3 kernel_size: 4 stride: 2 pad: 1 }',
            (2, 3, 20, 14),
        ),
        ('type: "InnerProduct" inner_product_param { num_output: 5 axis: 2 }', (2, 6, 5)),
        ('type: "InnerProduct" inner_product_param { num_output: 5 axis: -1 }', (2, 6, 10, 5)),
        ('type: "Flatten"', (2, 420)),
        ('type: "Reshape" reshape_param { shape { dim: 0 dim: -1 dim: 7 } }', (2, 60, 7)),
        ('type: "Concat" bottom: "x" concat_param { axis: 2 }', (2, 6, 20, 7)),
        ('type: "Slice" top: "z" slice_param { axis: 1 slice_point: 2 }', (2, 2, 10, 7)),
        ('type: "Interp" interp_param { shrink_factor: 3 zoom_factor: 2 }', (2, 6, 7, 5)),
        ('type: "Interp" interp_param { height: 4 width: 9 pad_beg: -1 }', (2, 6, 4, 9)),
        ('type: "PReLU"', (2, 6, 10, 7)),
        ('type: "Scale" scale_param { bias_term: true }', (2, 6, 10, 7)),
    ],
)
def test_rules(shapes_of, layer, shape):
    assert shapes_of(DATA + f'layer {{ name: "l" bottom: "x" top: "y" {layer} }}')["y"] == shape


def test_v1_layers(shapes_of):
    shapes = shapes_of(
        DATA + 'input: "y" input_dim: 2 input_dim: 1 input_dim: 1 input_dim: 1\n'
        'layers { name: "c" type: CONVOLUTION bottom: "x" top: "c" blobs_lr: 1\n'
        "  convolution_param { num_output: 4 kernel_size: 3 } }\n"
        'layers { name: "i" type: INNER_PRODUCT bottom: "c" top: "i" inner_product_param { num_output: 5 } }\n'
        'layers { name: "l" type: SOFTMAX_LOSS bottom: "i" bottom: "y" top: "l" }'
    )
    assert (shapes["c"], shapes["i"], shapes["l"]) == ((2, 4, 8, 5), (2, 5), ())


def test_what_is_unknown_or_does_not_fit_is_said_where_it_is(tmp_path):
    (tmp_path / "n.prototxt").write_text(
        DATA + 'layer { name: "odd" type: "Warp" bottom: "x" top: "odd" }\n'
        'layer { name: "after" type: "ReLU" bottom: "odd" top: "after" }\n'
        'layer { name: "sum" type: "Eltwise" bottom: "x" bottom: "c" top: "sum" }\n'
        'layer { name: "big" type: "Convolution" bottom: "x" top: "big" '
        "convolution_param { num_output: 2 kernel_size: 9 } }\n"
        'layer { name: "volume" type: "Input" top: "volume" input_param { shape { dim: [1, 2, 3, 4, 5] } } }\n'
        'layer { name: "deep" type: "Convolution" bottom: "volume" top: "deep" '
        "convolution_param { num_output: 2 kernel_h: 3 kernel_w: 3 } }\n"
        'layer { name: "mine" type: "Python" bottom: "x" top: "mine" python_param { layer: "MyLayer" } }\n'
        'layer { name: "test" type: "ReLU" bottom: "nothing" include { phase: TEST } }\n'
    )
    layers = summarise(read_prototxt(tmp_path / "n.prototxt")).layers
    assert {layer.name: layer.note for layer in layers if layer.note} == {
        "odd": "type: 'Warp' is not known",
        "sum": "no layer before it makes c",
        "big": "convolution_param.kernel_size: 9 with dilation 1 does not fit into 7+2*0 cells",
        "deep": "convolution_param.kernel_h: for 3 spatial axes; it is for 2",
        "mine": "type: '.MyLayer' is not known",
    }
    known = {layer.name: layer.shapes[0] for layer in layers if layer.shapes[0]}
    assert known == {"input": (2, 6, 10, 7), "volume": (1, 2, 3, 4, 5)}


def inspect(capsys, path) -> tuple[int, str, str]:
    status = run_command(["inspect", str(path)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_inspect_a_net(capsys, tmp_path):
    status, out, _ = inspect(capsys, CAFFE_FILES / "vgg16_aspp_deploy.prototxt")
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == "vgg16_aspp: net, 61 layers"
    assert lines[1].split() == ["input", "input", "images", "1x3x321x321"]
    cost = 4 * 3 * 3 * 3 * 321 * 321
    assert lines[2].split(maxsplit=2)[2] == (
        f"images -> conv1_1 1x4x321x321  [4x3x3x3, 4]  {cost} multiply-adds"
    )
    parameters = sum(p.numel() for p in build_model("vgg16_aspp", width_divisor=16).parameters())
    assert lines[-2] == "33 blobs"
    assert lines[-1].startswith(f"{parameters} parameters, ")
    (tmp_path / "n.prototxt").write_text(DATA + 'layer { name: "odd" type: "Warp" bottom: "x" top: "odd" }')
    assert inspect(capsys, tmp_path / "n.prototxt")[1].splitlines()[1:] == [
        "  input  input  x 2x6x10x7",
        "  odd    Warp   x -> odd ?  (type: 'Warp' is not known)",
        "2 blobs",
        "0 parameters, 0 multiply-adds in the layers that are known",
    ]


def test_inspect_as_json(capsys):
    path = CAFFE_FILES / "vgg16_aspp_deploy.prototxt"
    assert run_command(["inspect", str(path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    net = load_net(path)
    assert {
        top: tuple(shape)
        for layer in content["layers"]
        for top, shape in zip(layer["tops"], layer["shapes"], strict=True)
    } == {blob: shape for blob, shape in net.shapes.items() if "_split_" not in blob}
    assert content["parameters"] == sum(p.numel() for p in net.parameters())
    assert content["multiply_adds"] == sum(net.multiply_adds().values())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.to("meta")(torch.empty(net.shapes["images"], device="meta"))
    assert 2 * content["multiply_adds"] == counter.get_total_flops()


@pytest.mark.parametrize(
    ("rule", "phase"),
    [("", None), ("include { phase: TRAIN }", "train"), ("include { phase: TEST }", "train")],
)
def test_inspect_names_a_phase_where_the_net_depends_on_it(tmp_path, rule, phase):
    (tmp_path / "n.prototxt").write_text(
        'layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 1 } } }'
        f'layer {{ name: "r" type: "ReLU" bottom: "d" top: "d" {rule} }}'
    )
    path = tmp_path / "n.prototxt"
    assert summarise(read_prototxt(path), path=str(path)).as_json()["phase"] == phase


def test_inspect_a_net_of_one_phase(capsys, tmp_path):
    both = (
        'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 } } include { phase: TEST } }'
        'layer { name: "r" type: "ReLU" bottom: "d" top: "d" include { phase: TEST } }'
    )
    (tmp_path / "n.prototxt").write_text(both)
    assert "d -> d 1" in inspect(capsys, tmp_path / "n.prototxt")[1]
    (tmp_path / "n.prototxt").write_text(
        both + 'layer { name: "t" type: "Silence" include { phase: TRAIN } }'
    )
    assert "2 layers do not run in phase TRAIN" in inspect(capsys, tmp_path / "n.prototxt")[1]


def test_inspect_a_solver(capsys):
    status, out, _ = inspect(capsys, CAFFE_FILES / "retrain_solver.prototxt")
    assert status == 0
    assert out.splitlines()[:4] == [
        "retrain_solver.prototxt: solver",
        '  train_net: "retrain_train.prototxt"',
        "  random_seed: 0",
        '  lr_policy: "poly"',
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1", "neither a net (no layer) nor a solver"),
        ('layers { layer { name: "v0" type: "warp" } }', "is no layer type of the V0 layout"),
        ('layer { name: "a" ', "expected a field name or '}', found the end of the file"),
    ],
)
def test_inspect_what_is_neither(capsys, tmp_path, text, reason):
    (tmp_path / "n.prototxt").write_text(text)
    status, out, err = inspect(capsys, tmp_path / "n.prototxt")
    assert (status, out) == (2, "")
    assert err.startswith(f"repro: {tmp_path}/n.prototxt: ")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [("not found", "read as a prototxt, being text"), ("<html>not found</html>", "a web page (HTML)")],
)
def test_inspect_says_how_it_read_a_text_of_another_name(capsys, tmp_path, text, said):
    (tmp_path / "page.caffemodel").write_text(text)
    status, out, err = inspect(capsys, tmp_path / "page.caffemodel")
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_mutated_nets_are_listed_or_refused(tmp_path):
    """Three hundred mutations of values: a net is listed, unless a field cannot have a value; then in one line."""
    text = format_prototxt(deploy_prototxt(build_model("vgg16_cam", width_divisor=16))).split()
    values = ["0", "-1", "7", "100000", "9223372036854775807", "MAX", '"x"', "{ dim: 1 }", "1e9", "true"]
    places = [i for i, word in enumerate(text) if text[i - 1].endswith(":")]
    rng = random.Random(0)
    listed = refused = 0
    for _ in range(300):
        words = list(text)
        for place in rng.sample(places, rng.randrange(1, 3)):
            words[place] = rng.choice(values)
        (tmp_path / "n.prototxt").write_text(" ".join(words))
        try:
            listed += len(describe_file(tmp_path / "n.prototxt")) > words.count("layer")
        except InputError as error:
            refused += str(error).startswith(f"{tmp_path}/n.prototxt: ")
    assert listed + refused == 300
    assert min(listed, refused) > 30
