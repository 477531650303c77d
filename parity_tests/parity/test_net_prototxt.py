"""Written prototxts: equal to the recorded ones field by field, and read alike by OpenCV's own Caffe importer."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from parity_tests.conftest import CAFFE_FILES, assert_close
from parity_tests.net_fields import differing_fields
from parity_tests.tolerances import IMPORTER_REL
from repro.cli import run_command
from repro.config import load_config
from repro.errors import InputError
from repro.models import CLASSIFIERS, SEGMENTATION_NETS, CaffeNet, build_model, load_net
from repro.training.prototxts import deploy_prototxt, train_prototxt
from weights_conversion import (
    Identifier,
    Message,
    format_prototxt,
    load_caffe_weights,
    read_caffemodel,
    read_prototxt,
    write_caffemodel,
    write_prototxt,
)
from weights_conversion.caffe_pb2 import FillerParameter, NetParameter
from weights_conversion.lift import lift

RECORDED = ("vgg16_aspp", "vgg16_largefov", "vgg16_cam", "vgg16_bg", "resnet101_aspp")


def recorded_net(name: str):
    model = build_model(name, width_divisor=16).eval()
    load_caffe_weights(model, CAFFE_FILES / f"{name}.caffemodel")
    return model


def as_recorded(net: CaffeNet) -> CaffeNet:
    """The recorded nets start their hidden layers from msra."""
    for layer in net.parameter.layer:
        field = net[layer.name].field
        if field in ("convolution_param", "inner_product_param") and layer.name not in net.classifiers:
            getattr(layer, field).weight_filler.CopyFrom(FillerParameter(type="msra"))
    return net


def expected_difference(name: str, layer: str, field: str) -> bool:
    """What the recorded prototxts say otherwise than ours, and why ours does not."""
    if name == "resnet101_aspp" and layer.startswith(("bn", "scale")):
        # the recording ran this net forward only; DeepLab-v2's prototxt, as ours, freezes these five blobs
        return field.startswith("param ") and field.endswith(("lr_mult", "decay_mult"))
    # the recorded classifiers start their last layer from msra; SEC's new layers are gaussian
    return (layer, field.rpartition(".")[0]) in (
        ("scores", "inner_product_param.weight_filler"),
        ("fc8", "inner_product_param.weight_filler"),
    )


@pytest.mark.parametrize("name", RECORDED)
def test_deploy_prototxts_are_the_recorded_ones(name, tmp_path):
    write_prototxt(deploy_prototxt(as_recorded(build_model(name, width_divisor=16))), tmp_path / "d.prototxt")
    recorded = read_prototxt(CAFFE_FILES / f"{name}_deploy.prototxt")
    differences = differing_fields(read_prototxt(tmp_path / "d.prototxt"), recorded)
    assert [pair for pair in differences if not expected_difference(name, *pair)] == []


@pytest.mark.parametrize(("stage", "recorded"), [("stage1", "stage1_train"), ("stage2", "retrain_train")])
def test_train_prototxts_are_the_recorded_ones(stage, recorded, tmp_path):
    keys = {
        "stage1": ["batch_size=3", "mirror=false", "shuffle=false", "list=list.txt", "image_root=images/"],
        "stage2": ["batch_size=2", "mirror=false", "list=list.txt", "image_root=data"],
    }[stage]
    section = getattr(load_config("dsrg_vgg16_voc", [f"{stage}.data.{key}" for key in keys]), stage)
    net = as_recorded(build_model("vgg16_aspp", width_divisor=16, dropout=0))
    write_prototxt(train_prototxt(net, section), tmp_path / "t.prototxt", "a comment\n\nlines")
    assert (tmp_path / "t.prototxt").read_text().startswith("# a comment\n#\n# lines\nname: ")
    differences = differing_fields(
        read_prototxt(tmp_path / "t.prototxt"), read_prototxt(CAFFE_FILES / f"{recorded}.prototxt")
    )
    assert differences == [("", "name")]


def wiring(net: Message) -> dict[str, tuple[str, list, list]]:
    return {
        layer.one("name"): (
            layer["python_param"][0].one("layer") if "python_param" in layer else layer.one("type"),
            layer.get("bottom", []),
            layer.get("top", []),
        )
        for layer in net.layers
    }


def test_sec_trains_with_its_own_layers():
    net = train_prototxt(build_model("vgg16_largefov", width_divisor=16), load_config("sec_vgg16_voc").stage1)
    layers = wiring(net)
    assert list(layers)[:3] == ["Input", "Annotation", "conv1_1"]
    assert list(layers)[-6:] == ["fc8-SEC", "Softmax", "CRF", "loss-Seed", "loss-Expand", "loss-Constrain"]
    assert layers["CRF"] == ("CRFLayer", ["fc8-SEC", "images"], ["fc8-SEC-CRF-log"])
    assert layers["loss-Seed"] == ("SeedLossLayer", ["fc8-SEC-Softmax", "cues"], ["loss-Seed"])
    assert layers["loss-Expand"] == ("ExpandLossLayer", ["fc8-SEC-Softmax", "labels"], ["loss-Expand"])
    assert layers["loss-Constrain"][1] == ["fc8-SEC-Softmax", "fc8-SEC-CRF-log"]
    assert {
        layer: net.layers[list(layers).index(layer)].one("loss_weight") for layer in list(layers)[-3:]
    } == {
        "loss-Seed": 1,
        "loss-Expand": 1,
        "loss-Constrain": 1,
    }


def test_other_nets_and_data_train_with_the_same_layers():
    resnet = train_prototxt(
        build_model("resnet101_aspp", width_divisor=16), load_config("dsrg_resnet101_voc").stage1
    )
    layers = wiring(resnet)
    assert layers["Softmax"][1:] == (["fc1_voc12"], ["fc1_voc12-Softmax"])
    assert resnet.layers[list(layers).index("bn_conv1")]["param"] == 3 * [
        Message(lr_mult=[0], decay_mult=[0])
    ]
    coco = load_config("dsrg_vgg16_coco", ["stage1.data.image_root=COCO/", "stage1.data.cues=COCO/"]).stage1
    layers = wiring(train_prototxt(build_model("vgg16_aspp", num_classes=81, width_divisor=16), coco))
    assert layers["Annotation"] == ("AnnotationLayerCOCO", [], ["labels", "cues", "images"])
    grown = load_config(
        "dsrg_vgg16_voc", ["rows=[]", "loss.constrain=false", "loss.theta_f=.inf"], stages=("stage1",)
    ).stage1
    net = train_prototxt(build_model("vgg16_aspp", width_divisor=64), grown)
    assert wiring(net)["silence"] == ("Silence", ["fc8-SEC-CRF-log"], [])
    (update,) = (layer for layer in net.layers if layer.one("name") == "update-seed")
    settings = update["python_param"][0].one("param_str")
    assert eval(settings) == {"th1": 0.99, "th2": math.inf}  # as the layer reads it


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_train_on_labels_without_background(name):
    section = load_config("sec_vgg16_voc").stage0
    net = build_model(name, width_divisor=16)
    prototxt = train_prototxt(net, section)
    layers = wiring(prototxt)
    assert list(layers)[-3:] == ["labels-slice", "silence", "loss"]
    assert layers["loss"][:2] == ("SigmoidCrossEntropyLoss", [net.scores_blob, "labels-classes"])
    assert prototxt.layers[0]["image_data_param"][0].one("batch_size") == section.data.batch_size
    assert prototxt.layers[0]["transform_param"][0]["mean_value"] == [104.008, 116.669, 122.675]
    shapes = load_net(lift(prototxt, NetParameter, ""), phase="train").shapes
    number = section.data.batch_size
    assert shapes["labels-classes"] == (number, 1, 1, 20)
    assert shapes[net.scores_blob] == (number, 20)
    with pytest.raises(InputError, match=f"{name}: classifiers train in stage 0"):
        train_prototxt(net, load_config("sec_vgg16_voc").stage1)
    xml = section.model_copy(update={"data": section.data.model_copy(update={"labels": "Annotations"})})
    with pytest.raises(
        InputError, match=r"data\.labels Annotations: AnnotationLayer reads labels from a cue file"
    ):
        train_prototxt(net, xml)


@pytest.mark.parametrize(
    ("profile", "stage", "overrides", "reason"),
    [
        ("dsrg_vgg16_voc", "stage1", ["loss.rule=paper"], "the release's DSRGLayer knows its own rule alone"),
        ("sec_vgg16_voc", "stage1", ["loss.pooling=max"], "loss.pooling max: no Caffe layer"),
        ("dsrg_vgg16_coco", "stage1", ["data.image_root=a", "data.cues=b"], "data.cues b: .* one root"),
        ("dsrg_vgg16_coco", "stage2", [], "data.rgb: the release's ImageSegDataLayer gives BGR alone"),
        (
            "dsrg_vgg16_voc",
            "stage2",
            ["data.image_root=a", "data.label_root=b"],
            "data.label_root b: .* one root",
        ),
    ],
)
def test_what_no_caffe_layer_does_is_refused(profile, stage, overrides, reason):
    section = getattr(load_config(profile, overrides, stages=(stage,)), stage)
    with pytest.raises(InputError, match=reason):
        train_prototxt(build_model("vgg16_aspp", width_divisor=64), section)


def random_message(rng: random.Random, depth: int = 0) -> Message:
    def value():
        kind = rng.randrange(6 if depth < 4 else 5)
        if kind == 0:
            return rng.choice([True, False])
        if kind == 1:
            return rng.choice([0, -1, 1 << 63, -(1 << 63), rng.randrange(-1000, 1000)])
        if kind == 2:
            return rng.choice([0.0, -0.5, 1e-05, 1e300, 5e-324, math.inf, -math.inf, rng.gauss(0, 1e6)])
        if kind == 3:
            return Identifier(rng.choice(["MAX", "AVE", "a_1"]))
        if kind == 4:
            return "".join(
                chr(rng.choice([34, 39, 92, 10, 9, 0, 127, 228, 0x1F600, 65]))
                for _ in range(rng.randrange(8))
            )
        return random_message(rng, depth + 1)

    return Message(
        {f"field_{i}": [value() for _ in range(rng.randrange(1, 3))] for i in range(rng.randrange(1, 4))}
    )


def test_what_is_written_is_read_back(tmp_path):
    rng = random.Random(0)
    for _ in range(300):
        message = random_message(rng)
        (tmp_path / "m.prototxt").write_text(format_prototxt(message), encoding="utf-8")
        read = read_prototxt(tmp_path / "m.prototxt")
        assert repr(read) == repr(message)  # types too: True is not 1, an identifier no string


def importer(net, folder):
    """OpenCV's network from the files that we write, without its own optimisations."""
    cv2 = pytest.importorskip("cv2")
    write_prototxt(deploy_prototxt(net), folder / "net.prototxt")
    write_caffemodel(net, folder / "net.caffemodel")
    assert read_caffemodel(folder / "net.caffemodel").name == net.name
    imported = cv2.dnn.readNetFromCaffe(str(folder / "net.prototxt"), str(folder / "net.caffemodel"))
    imported.enableFusion(False)
    return imported


def check_scores(net, imported, sizes):
    for height, width in sizes:
        images = np.random.default_rng(height).normal(0, 50, (1, 3, height, width)).astype(np.float32)
        imported.setInput(images)
        with torch.inference_mode():
            scores = net(torch.from_numpy(images))
        what = f"{net.name} {height}x{width}"
        assert_close(imported.forward(), scores, IMPORTER_REL, what, relative_to_max=True)


@pytest.mark.parametrize("name", [*SEGMENTATION_NETS, *CLASSIFIERS])
def test_opencv_gives_the_same_scores(name, tmp_path):
    net = recorded_net(name) if name in RECORDED else build_model(name, width_divisor=16).eval()
    if name not in RECORDED:
        net.fill("msra", torch.Generator().manual_seed(0))
    sizes = [(321, 321)] if name in CLASSIFIERS else [(321, 321), (241, 401), (65, 49), (97, 130)]
    check_scores(net, importer(net, tmp_path), sizes)


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg16_aspp", "vgg16_largefov", "resnet101_aspp"])
def test_opencv_gives_the_same_scores_at_full_width(name, tmp_path):
    net = build_model(name).eval()
    net.fill("msra", torch.Generator().manual_seed(0))
    check_scores(net, importer(net, tmp_path), [(321, 321), (97, 130)])


def prototxt(capsys, *arguments) -> tuple[int, str, str]:
    status = run_command(["prototxt", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_profiles_prototxts(capsys, tmp_path):
    deploy, train = tmp_path / "deploy.prototxt", tmp_path / "train.prototxt"
    net = ("--config", "dsrg_vgg16_voc", "model.width_divisor=16")
    assert prototxt(capsys, deploy, *net)[:2] == (0, f"{deploy}\n")
    assert prototxt(capsys, train, *net, "--stage", 1)[:2] == (0, f"{train}\n")
    ours = deploy_prototxt(build_model("vgg16_aspp", width_divisor=16))
    assert differing_fields(read_prototxt(deploy), ours) == []
    names = [layer.one("name") for layer in read_prototxt(train).layers]
    assert names[-2:] == ["loss-Seed", "loss-Constrain"]
    bg = ("--net", "vgg16_bg", "stage0.data.input_size=97")
    assert prototxt(capsys, train, *net, "--stage", 0, *bg)[0] == 0
    layers = read_prototxt(train).layers
    assert layers[0].one("image_data_param").one("new_height") == 97
    assert layers[-1].one("type") == "SigmoidCrossEntropyLoss"
    assert prototxt(capsys, train, *net, "--stage", 1, "data.batch_size=3")[0] == 0  # a key of that stage
    assert read_prototxt(train).layers[0].one("image_data_param").one("batch_size") == 3


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--stage", 0], "--stage 0: trains the classifiers; --net says which, vgg16_cam or vgg16_bg"),
        (["--stage", 2], "sec_vgg16_voc: has no section stage2"),
        (["--net", "vgg16"], "--net 'vgg16': expected one of vgg16_cam, vgg16_bg"),
        (["--net", "vgg16_cam", "--stage", 1], "vgg16_cam: classifiers train in stage 0"),
    ],
)
def test_bad_requests_for_prototxts_are_one_line(capsys, tmp_path, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    status, _, err = prototxt(capsys, "t.prototxt", "--config", "sec_vgg16_voc", *arguments)
    assert status == 2
    assert reason in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
