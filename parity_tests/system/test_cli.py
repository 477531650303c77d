"""The command line as a user meets it: help, results, and one line for each kind of bad input, with nothing written."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from parity_tests.conftest import CAFFE_FILES, held_by_another
from parity_tests.recorded_files import write_retrain_inputs, write_stage1_inputs
from repro.cli import run_command
from repro.data import CueFile, read_mask, write_mask
from repro.models import load_net
from weights_conversion.caffe_pb2 import NetParameter, V1LayerParameter

VERBS = (
    "convert",
    "prototxt",
    "seeds",
    "inspect",
    "train",
    "predict",
    "pseudo-labels",
    "evaluate",
    "reproduce",
    "tables",
    "data",
)


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    status = run_command([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys, *arguments) -> str:
    """Run what must be refused; returns the one line on standard error."""
    status, _, message = run(capsys, *arguments)
    lines = [line for line in message.splitlines() if line.startswith("repro: ")]
    assert status == 2, message
    assert len(lines) == 1, message
    assert "Traceback" not in message
    return lines[0]


@pytest.fixture
def inputs(tmp_path, golden) -> Path:
    write_stage1_inputs(golden("stage1"), tmp_path)
    return tmp_path


def train_arguments(inputs: Path, *more: str) -> list[str]:
    return [
        *("train", "--stage", "1", "--config", "dsrg_vgg16_voc", "device=cpu", "model.width_divisor=16"),
        *(f"data.image_root={inputs}/images/", f"data.list={inputs}/list.txt"),
        *(
            f"data.cues={inputs}/localization_cues.pickle",
            "data.batch_size=6",
            "data.shuffle=false",
            "data.workers=0",
        ),
        *("init.filler=msra", "solver.max_iter=1", f"output={inputs}/run", *more),
    ]


def test_help_shows_every_verb():
    top = subprocess.run(
        [sys.executable, "-m", "repro", "--help"], capture_output=True, text=True, check=True
    )
    for verb in VERBS:
        assert verb in top.stdout


def test_reproduce_wants_imagenet_weights_or_a_filler_that_trains(mini_root, tmp_path, capsys):
    root = f"dataset.root={mini_root}"
    line = refused(
        capsys, "reproduce", "--config", "mini", root, f"output={tmp_path}/run", "init.filler=gaussian"
    )
    assert "stage1.init.weights: not given" in line
    assert "--seeds ,: expected" in refused(capsys, "reproduce", "--config", "mini", root, "--seeds", ",")
    assert "seeds [0, 0]" in refused(capsys, "reproduce", "--config", "mini", root, "--seeds", "0,0")
    assert "seeds [0, -1]" in refused(capsys, "reproduce", "--config", "mini", root, "--seeds=0,-1")
    assert not list(tmp_path.iterdir())


def test_no_verb_and_a_wrong_one(capsys):
    assert run(capsys, "trian")[0] == 2
    assert run(capsys, "train", "--config", "dsrg_vgg16_voc", "--stage", "3")[0] == 2


def test_two_runs_in_one_folder(inputs, capsys):
    (inputs / "run").mkdir()
    with held_by_another(inputs / "run") as process:
        line = refused(capsys, *train_arguments(inputs))
        assert f"{inputs}/run: in use by process {process} on " in line
        assert [path.name for path in (inputs / "run").iterdir()] == [".sec-dsrg-lock"]
    assert run(capsys, *train_arguments(inputs))[0] == 0


# --- what bad input gets -----------------------------------------------------------------------------------


def spoil_missing_image(inputs):
    (inputs / "images" / "2.png").unlink()


def spoil_undecodable_image(inputs):
    (inputs / "images" / "2.png").write_bytes(b"not a picture")


def spoil_truncated_image(inputs):
    path = inputs / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:2000])


def spoil_list_line(inputs):
    (inputs / "list.txt").write_text("0.png 0\n1.png\n")


def spoil_list_index(inputs):
    (inputs / "list.txt").write_text("0.png 0\n1.png one\n")


def spoil_empty_list(inputs):
    (inputs / "list.txt").write_text("\n")


def spoil_unknown_index(inputs):
    (inputs / "list.txt").write_text("0.png 0\n1.png 77\n")


def with_cues(inputs, **entries):
    path = inputs / "localization_cues.pickle"
    content = pickle.loads(path.read_bytes())
    content.update({name.replace("i", "", 1): value for name, value in entries.items()})
    path.write_bytes(pickle.dumps(content, protocol=2))


def spoil_cue_place(inputs):
    with_cues(inputs, i1_cues=np.array([[1], [41], [0]]))


def spoil_cue_class(inputs):
    with_cues(inputs, i1_cues=np.array([[21], [4], [0]]))


def spoil_labels(inputs):
    with_cues(inputs, i1_labels=np.array([], dtype=np.int64))


def spoil_label_class(inputs):
    with_cues(inputs, i1_labels=np.array([30]))


class Harmful:
    def __reduce__(self):
        return (print, ("code from a pickle ran",))


def spoil_pickle(inputs):
    (inputs / "localization_cues.pickle").write_bytes(pickle.dumps({"0_labels": Harmful()}))


def spoil_pickle_bytes(inputs):
    (inputs / "localization_cues.pickle").write_bytes(b"\x80\x02}q\x00(")


SPOILERS = {
    spoil_missing_image: r"list.txt:3: no such file: .*2.png",
    spoil_undecodable_image: r"list.txt:3: .*2.png: not an image",
    spoil_truncated_image: r"list.txt:3: .*2.png: the image file is damaged",
    spoil_list_line: r"list.txt:2: .*'1.png'",
    spoil_list_index: r"list.txt:2: .*'1.png one'|list.txt:2: .*'one'",
    spoil_empty_list: r"list.txt: ",
    spoil_unknown_index: r"list.txt:2: .*77",
    spoil_cue_place: r"localization_cues.pickle.*41",
    spoil_cue_class: r"localization_cues.pickle.*21",
    spoil_labels: r"localization_cues.pickle.*label",
    spoil_label_class: r"localization_cues.pickle.*30",
    spoil_pickle: r"localization_cues.pickle: .*print",
    spoil_pickle_bytes: r"localization_cues.pickle: ",
}


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__.removeprefix("spoil_"))
def test_bad_training_data(inputs, capsys, spoil):

    spoil(inputs)
    message = refused(capsys, *train_arguments(inputs))
    assert re.search(SPOILERS[spoil], message), message
    assert "code from a pickle ran" not in message
    assert not (inputs / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["solver.momentun=0.9"], "unknown key 'stage1.solver.momentun'; did you mean 'momentum'"),
        (["data.batch_size=1.5"], "stage1.data.batch_size"),
        (["data.image_root=/nowhere/at/all"], "stage1.data.image_root: no such folder: /nowhere/at/all"),
        (["data.list=/nowhere.txt"], "stage1.data.list: no such file: /nowhere.txt"),
        (["data.cues=/nowhere.pickle"], "stage1.data.cues: no such file: /nowhere.pickle"),
        (["data.list=null"], "stage1.data.list: not given; add data.list=PATH"),
        (["init.weights=/nowhere.caffemodel"], "stage1.init.weights: no such file"),
        (["model.name=resnet18"], "model.name 'resnet18': expected one of"),
        ([f"init.weights={CAFFE_FILES}/toy_iter_6.caffemodel"], "none of its layers is in vgg16_aspp"),
        (
            ["model.width_divisor=8", f"init.weights={CAFFE_FILES}/stage1_init.caffemodel"],
            "conv1_1.*4, 3, 3, 3.*8, 3, 3, 3",
        ),
        (
            [f"init.solverstate={CAFFE_FILES}/toy_iter_6.solverstate"],
            "history holds 4 arrays, the model has 50",
        ),
        (["device=cuda:9"], "device cuda:9: this machine has"),
        (["data.cues=/"], "stage1.data.cues: a folder, a file expected: /$"),
        (["init.weights=/"], "stage1.init.weights: a folder, a file expected: /$"),
        (["data.image_root=/dev/null"], "stage1.data.image_root: a pipe or a device, a folder expected"),
        ([f"data.image_root={__file__}"], "stage1.data.image_root: a file, a folder expected"),
        (["output=/proc/nowhere"], "output /proc/nowhere: cannot be written"),
        (
            [f"output={__file__}"],
            "test_cli.py: cannot be written .expected a folder, .*test_cli.py is a file.$",
        ),
        ([f"output={__file__}/run"], "run: cannot be written .expected a folder, .*test_cli.py is a file.$"),
    ],
    ids=lambda value: value[0][:24] if isinstance(value, list) else "",
)
def test_bad_settings(inputs, capsys, more, message):

    line = refused(capsys, *train_arguments(inputs, *more))
    assert re.search(message, line), line
    assert not (inputs / "run").exists()


def test_bad_retraining_labels(tmp_path, golden, capsys):
    write_retrain_inputs(golden("retrain"), tmp_path)
    arguments = [
        *("train", "--stage", "2", "--config", "dsrg_vgg16_voc", "device=cpu", "model.width_divisor=64"),
        *(
            f"data.image_root={tmp_path}/images",
            f"data.label_root={tmp_path}/labels",
            f"data.list={tmp_path}/list.txt",
        ),
        *("data.batch_size=8", "data.workers=0", "solver.max_iter=1", f"output={tmp_path}/run"),
    ]
    label = tmp_path / "labels" / "1.png"
    good = read_mask(label)
    write_mask(label, good[:-1])
    assert "1.png" in refused(capsys, *arguments)
    Image.fromarray(np.full_like(good, 33)).save(label)
    line = refused(capsys, *arguments)
    assert "1.png" in line
    assert "33" in line
    Image.fromarray(np.zeros((*good.shape, 3), np.uint8)).save(label)
    assert "1.png" in refused(capsys, *arguments)
    label.unlink()
    assert "list.txt:2: no such file: " in refused(capsys, *arguments)
    assert not (tmp_path / "run").exists()


# --- the other verbs ---------------------------------------------------------------------------------------


def test_predict_and_evaluate(tmp_path, golden, capsys):
    recorded = golden("inference")
    images, truth = tmp_path / "images", tmp_path / "truth"
    images.mkdir()
    for name in ("image0", "image1"):
        Image.fromarray(recorded[name]["image_rgb"][()]).save(images / f"{name}.png")
        write_mask(truth / f"{name}.png", recorded[name]["sec_demo_crf"][()])
    (tmp_path / "ids.txt").write_text("image0\nimage1\n")
    arguments = [
        *("predict", "--config", "dsrg_vgg16_voc", "--weights", CAFFE_FILES / "stage1_init.caffemodel"),
        *("--images", images, "--out", tmp_path / "masks", "device=cpu"),
        *("model.width_divisor=16", "inference.protocol=sec"),
    ]
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "2 masks written, 0 were there" in out
    assert "0 masks written, 2 were there" in run(capsys, *arguments)[1]

    scores = tmp_path / "scores.json"
    arguments = [
        "evaluate",
        "--pred",
        tmp_path / "masks",
        "--gt",
        truth,
        "--list",
        tmp_path / "ids.txt",
        "--out",
        scores,
    ]
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "mean IoU, rule released     100.00" in out
    assert json.loads(scores.read_text())["images"] == 2
    (tmp_path / "masks" / "image1.png").unlink()
    assert "image1.png" in refused(capsys, *arguments)


def test_predict_refuses(tmp_path, capsys):
    base = ["predict", "--config", "dsrg_vgg16_voc", "--out", tmp_path / "masks", "model.width_divisor=16"]
    weights = ["--weights", CAFFE_FILES / "stage1_init.caffemodel"]
    assert "no such file or folder" in refused(capsys, *base, *weights, "--images", tmp_path / "nowhere")
    assert "no image" in refused(capsys, *base, *weights, "--images", tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"")
    folder = ["--weights", tmp_path, "--images", tmp_path]
    assert f"{tmp_path}: a folder, a file expected" in refused(capsys, *base, *folder)
    for engine in "torch", "onnx":
        for images in tmp_path, tmp_path / "a.jpg":
            # said before the weights are read, which are none here
            among = [
                "--weights",
                tmp_path / "a.jpg",
                "--images",
                images,
                "--out",
                tmp_path,
                "--engine",
                engine,
            ]
            assert "the images are in this folder" in refused(capsys, *base, *among)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
    assert "a.jpg: the image file is empty" in refused(capsys, *base, *weights, "--images", tmp_path)
    largefov = ["--weights", CAFFE_FILES / "vgg16_largefov.caffemodel"]
    assert "has no weights for fc6_1, " in refused(capsys, *base, *largefov, "--images", tmp_path)
    assert not (tmp_path / "masks").exists()


def test_masks_of_other_settings_are_not_mixed(tmp_path, capsys):
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    arguments = [
        *("predict", "--config", "dsrg_vgg16_voc", "--weights", CAFFE_FILES / "stage1_init.caffemodel"),
        *(
            "--images",
            tmp_path / "a.png",
            "--out",
            tmp_path / "masks",
            "device=cpu",
            "model.width_divisor=16",
        ),
    ]
    assert run(capsys, *arguments, "inference.protocol=sec")[0] == 0
    assert "made with protocol = 'sec', now 'dsrg_final'" in refused(capsys, *arguments)
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "a.jpg")
    arguments[arguments.index("--images") + 1] = tmp_path
    assert "a.jpg and a.png would share a mask" in refused(capsys, *arguments)


def test_convert_and_inspect(tmp_path, capsys, monkeypatch):
    source = CAFFE_FILES / "vgg16_largefov_v1.caffemodel"
    target = tmp_path / "mc.safetensors"
    net = CAFFE_FILES / "vgg16_aspp_deploy.prototxt"
    arguments = ["convert", net, source, target, "--spread-branches"]
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "fc6 -> fc6_1" in out
    first = target.read_bytes()
    assert run(capsys, *arguments)[0] == 0
    assert target.read_bytes() == first
    back = tmp_path / "mc.caffemodel"
    assert run(capsys, "convert", net, target, back)[0] == 0
    status, out, _ = run(capsys, "inspect", back)
    assert status == 0
    assert "fc8-SEC_4" in out
    assert "4x3x3x3" in out
    assert "expected a name that ends in" in refused(capsys, "convert", net, back, tmp_path / "x.pth")
    other = tmp_path / "x.safetensors"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vgg16_aspp").mkdir()  # a folder of a net's name is no net
    assert "conv1_1" in refused(capsys, "convert", "vgg16_aspp", back, other)
    assert "did you mean 'vgg16_aspp'?" in refused(capsys, "convert", "vgg16_asp", back, other)
    assert "--spread-branches: goes with" in refused(capsys, "convert", back, other, "--spread-branches")
    assert "--image a.png: goes with an .onnx or .py" in refused(
        capsys, "convert", back, other, "--image", "a.png"
    )
    assert not other.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".h5", ".caffemodel"])
def test_an_old_file_converted_alone_is_loaded(tmp_path, capsys, suffix):
    """Its shapes of four axes, (1, 1, 1, N) of a bias, are no more in the new file."""
    source, target = CAFFE_FILES / "vgg16_largefov_v1.caffemodel", tmp_path / f"new{suffix}"
    assert run(capsys, "convert", source, target)[0] == 0
    net, same = (load_net(CAFFE_FILES / "vgg16_largefov_deploy.prototxt", path) for path in (source, target))
    for (name, ours), theirs in zip(net.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_an_old_inner_product_keeps_its_two_axes(tmp_path, capsys):
    net = NetParameter()
    layer = net.layers.add(name="ip", type=V1LayerParameter.INNER_PRODUCT)
    for shape in ((1, 1, 1, 5), (1, 1, 1, 1)):
        sizes = dict(zip(("num", "channels", "height", "width"), shape, strict=True))
        layer.blobs.add(**sizes, data=range(math.prod(shape)))
    (tmp_path / "old.caffemodel").write_bytes(net.SerializeToString())
    assert run(capsys, "convert", tmp_path / "old.caffemodel", tmp_path / "new.npz")[0] == 0
    with np.load(tmp_path / "new.npz") as new:
        assert {name: new[name].shape for name in new} == {"ip.weight": (1, 5), "ip.bias": (1,)}


def test_data_verbs(tmp_path, inputs, capsys):
    packed = tmp_path / "cues.pickle.gz"
    packed.write_bytes(gzip.compress((inputs / "localization_cues.pickle").read_bytes()))
    status, out, _ = run(capsys, "data", "cues", packed, tmp_path / "cues.h5")
    assert status == 0
    assert out.strip() == str(tmp_path / "cues.h5")
    assert len(CueFile.open(tmp_path / "cues.h5")) == 6
    assert "no such" in refused(capsys, "data", "cues", tmp_path / "nowhere.pickle", tmp_path / "x.h5")
    assert not (tmp_path / "x.h5").exists()


def test_reproduce_says_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = ["reproduce", "--config", "dsrg_vgg16_voc"]
    line = refused(capsys, *base)
    assert "no VOC 2012 given" in line
    assert "make data (repro data fetch)" in line
    assert "no such folder: VOC2012" in refused(capsys, *base, "dataset.root=VOC2012")
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (tmp_path / "VOCdevkit/VOC2012" / folder).mkdir(parents=True)
    assert "did you mean VOCdevkit/VOC2012?" in refused(capsys, *base, "dataset.root=VOCdevkit")
    line = refused(capsys, *base, "dataset.root=VOCdevkit/VOC2012")
    assert "no localization_cues.h5 or localization_cues.pickle" in line
    assert "--seeds 0,a" in refused(capsys, *base, "--seeds", "0,a")
    assert [path.name for path in tmp_path.iterdir()] == ["VOCdevkit"]
