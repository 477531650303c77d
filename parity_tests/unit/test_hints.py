"""What was meant: a name that is nearly one of a closed set, a folder a level off, a file of another kind."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from parity_tests.conftest import CAFFE_FILES
from repro.config import file_config, load_config
from repro.data import CueFile, VocLayout
from repro.data.experiment import open_experiment
from repro.data.labels import read_labels
from repro.errors import InputError
from repro.fetch.get_data import Fetcher
from repro.fetch.sbd import find_sbd
from repro.metrics import mean_iou
from repro.models import build_model, load_net
from repro.models.weights import load_weights
from repro.paper.experiments import experiments
from weights_conversion.errors import some


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device=gpu", "device: 'gpu': expected one of auto, cpu, cuda, cuda:0; did you mean 'cuda'?"),
        ("device=CUDA", "did you mean 'cuda'?"),
        ("device=cuda0", "did you mean 'cuda:0'?"),
        ("device=gpu:0", "expected one of auto, cpu, cuda, cuda:0; did you mean 'cuda:0'?"),
        ("device=1", "device: '1': expected one of auto, cpu, cuda, cuda:1; did you mean 'cuda:1'?"),
        (
            "precision=fats",
            "precision: expected one of faithful, fast, double; did you mean 'fast'?, found 'fats'",
        ),
        ("stage1.solver.type=adam", "did you mean 'Adam'?"),
        ("stage1.solver.lr_policy=steps", "did you mean 'step'?"),
        ("inference.protocol=dsrg_finale", "did you mean 'dsrg_final'?"),
        ("model.name=vgg16_asp", "did you mean 'vgg16_aspp'?"),
        ("rows=[+DRSG]", "did you mean '+DSRG'?"),
        ("stage1.solver.max_itr=3", "unknown key 'stage1.solver.max_itr'; did you mean 'max_iter'?"),
        ("stag1.solver.max_iter=3", "unknown key 'stag1'; did you mean 'stage1'?"),
        (
            "sovler.max_iter=5",
            "unknown key 'sovler'; did you mean 'stage0.solver.max_iter' or 'stage1.solver.max_iter' or "
            "'stage2.solver.max_iter'?",
        ),
        ("max_itr=5", "did you mean 'stage0.solver.max_iter' or 'stage1.solver.max_iter' or 'stage2."),
        ("stage1.max_iter=5", "unknown key 'stage1.max_iter'; did you mean 'stage1.solver.max_iter'?"),
        ("stage2.solver.mirror=false", "did you mean 'stage2.data.mirror'?"),
        ("data.use_labels=true", "did you mean 'pseudo_labels.use_labels'?"),
        ("root=x", "unknown key 'root'; did you mean 'dataset.root'?"),  # not the section 'report'
        ("crf=false", "did you mean 'inference.crf' or 'pseudo_labels.crf'?"),
        ("stag1.solver.max_itr=3", "unknown key 'stag1'; did you mean 'stage1.solver.max_iter' or "),
        ("stag1.x.y=3", "unknown key 'stag1'; did you mean 'stage1'?"),
        ("stage1={solver.max_iter: 5}", "expected its sections nested: stage1: {solver: {max_iter: …}}"),
        ("colour.depth=3", "unknown key 'colour'; expected one of name, seed, "),
        (
            "stage1.data=5",
            "stage1.data: expected a section with keys such as layer, image_root, list and 10 more, found 5",
        ),
        ("precision=quick", "expected one of faithful, fast, double, found 'quick'"),
    ],
)
def test_settings(override, message):
    with pytest.raises(InputError) as caught:
        load_config("dsrg_vgg16_voc", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sovler: {max_iter: 5}", "unknown key 'sovler'; did you mean 'stage0.solver.max_iter' or 'stage1."),
        (
            "data: {list: a, cues: b}",
            "unknown key 'data'; did you mean 'stage0.data.list' or 'stage1.data.list'",
        ),
        ("solver: {}", "did you mean 'stage0.solver' or 'stage1.solver' or 'stage2.solver'?"),
        ("sovler: {3: 5}", "did you mean 'stage0.solver' or 'stage1.solver' or 'stage2.solver'?"),
        ("stage1: {max_iter: 5}", "unknown key 'stage1.max_iter'; did you mean 'stage1.solver.max_iter'?"),
        ("stage1.solver.max_iter: 5", "expected its sections nested: stage1: {solver: {max_iter: …}}"),
    ],
)
def test_settings_in_a_profile(tmp_path, text, message):
    profile = tmp_path / "mine.yaml"
    profile.write_text(f"name: mine\nbase: mini\n{text}\n")
    with pytest.raises(InputError) as caught:
        load_config(str(profile))
    assert message in str(caught.value)


def test_settings_of_a_caffe_solver():
    fields = {"name": "a", "caffe_solver": "s", "solver": {"base_lr": 0.1, "lr_policy": "fixed"}}
    for given in ("max_iter=5", "stage1.solver.max_iter=5"):
        with pytest.raises(InputError, match=r"did you mean 'solver\.max_iter'\?"):
            file_config(fields, [given], "solver.prototxt")


def near_names(tmp_path: Path):
    (tmp_path / "l.csv").write_text("a.jpg,Dgo\n")
    (tmp_path / "net.prototxt").write_text(
        'input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }\n'
        'layer { name: "c" type: "Convolutoin" bottom: "data" top: "c" }\n'
    )
    return {
        "profile": (lambda: load_config("dsrg_vgg16_vco"), "dsrg_vgg16_voc"),
        "experiment": (lambda: experiments().named(["tabel2"]), "table2"),
        "source": (lambda: Fetcher(tmp_path / "VOC2012").selected(["voc2021"]), "voc2012"),
        "class": (lambda: read_labels(tmp_path / "l.csv", ["background", "cat", "dog"]), "dog"),
        "layer type": (lambda: load_net(tmp_path / "net.prototxt"), "Convolution"),
        "net": (lambda: build_model("vgg16_largfov"), "vgg16_largefov"),
        "rule": (lambda: mean_iou(np.eye(2, dtype=np.int64), "relased"), "released"),
    }


@pytest.mark.parametrize("what", ["profile", "experiment", "source", "class", "layer type", "net", "rule"])
def test_names(tmp_path, what):
    call, meant = near_names(tmp_path)[what]
    with pytest.raises(InputError) as caught:
        call()
    assert f"did you mean '{meant}'?" in str(caught.value)


@pytest.mark.parametrize(
    "given", [".", "VOCdevkit", "VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/ImageSets"]
)
def test_a_voc_root_a_level_off(tmp_path, given):
    right = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (right / folder).mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        VocLayout.open(tmp_path / given)
    assert f"did you mean {right}?" in str(caught.value)
    assert VocLayout.open(right).root == right


@pytest.mark.parametrize("name", ["VOCtrainval_11-May-2012.tar", "voc.tar.gz", "VOC2012.zip"])
def test_an_archive_for_the_folder_of_a_data_set(tmp_path, name):
    (tmp_path / name).write_bytes(tarred(Path(__file__)))
    said = f"{name}: a file, a folder expected; an archive has to be unpacked first"
    for read in (VocLayout.open, find_sbd):
        with pytest.raises(InputError, match=said):
            read(tmp_path / name)
    for profile in ("dsrg_vgg16_voc", "dsrg_vgg16_coco"):
        with pytest.raises(InputError, match=said):
            open_experiment(load_config(profile, [f"dataset.root={tmp_path / name}"]))


def test_a_folder_that_is_no_voc_root_and_near_none(tmp_path):
    with pytest.raises(InputError, match="such as VOCdevkit/VOC2012"):
        VocLayout.open(tmp_path)


def other_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    np.save(folder / "a.npy", np.zeros((3, 4)))
    model = (CAFFE_FILES / "toy_iter_6.caffemodel").read_bytes()
    return {
        "npy": ((folder / "a.npy").read_bytes(), ".npy"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "Git LFS pointer"),
        "html": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "web page (HTML)"),
        "gzip": (gzip.compress(model), "compressed by gzip"),
        "7-Zip": (b"7z\xbc\xaf\x27\x1c" + bytes(40), "compressed by 7-Zip"),
        "tar": (tarred(folder / "a.npy"), "a tar archive: unpack it first"),
        "MATLAB": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(200), "a MATLAB file"),
        "TFLite": (b"\x1c\0\0\0TFL3" + bytes(40), "a TensorFlow Lite model"),
        "Keras archive": (
            zipped("config.json", "model.weights.h5"),
            "its model.weights.h5 holds the weights",
        ),
        "TorchScript": (zipped("net/data.pkl", "net/code/net.py"), "torch.jit.load(FILE).state_dict()"),
        "TensorFlow graph": (
            tensor_flow(b"\n"),
            "a TensorFlow or Core ML model, which is not read; Keras' HDF5",
        ),
        "TensorFlow saved model": (tensor_flow(b"\x08\x01\x12"), "a TensorFlow or Core ML model"),
        "MXNet": (b"\x12\x01" + bytes(40), "a file of MXNet's parameters"),
        "Torch7": (b"\4\0\0\0\1\0\0\0\3\0\0\0V 1", "a file of Lua's Torch7"),
        "Darknet": (bytes(4) + b"\2\0\0\0\5" + bytes(40), "a file of Darknet's weights"),
        "pickled arrays": (pickled(4), "a .npz, as np.savez(NEW"),
        "pickled arrays, old": (pickled(2), "a .npz, as np.savez(NEW"),
        "zip": (zipped("vgg16_20M.caffemodel"), "it has no data.pkl; it holds vgg16_20M.caffemodel"),
    }


def pickled(protocol: int) -> bytes:
    return pickle.dumps({"conv1_1.weight": np.zeros((4, 3, 3, 3), np.float32)}, protocol)


def tensor_flow(before: bytes) -> bytes:
    """A GraphDef, or what else begins with a message in a message: a node with its name and operation."""
    node = b"\n\x05input\x12\x0bPlaceholder" + bytes(300)
    return before + b"\xbf\x02" + (node if before == b"\n" else b"\n\x10" + node)


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, name * 9)
    return buffer.getvalue()


def tarred(path: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(path, path.name)
    return buffer.getvalue()


OTHER_FILES = [
    "npy",
    "lfs",
    "html",
    "gzip",
    "7-Zip",
    "tar",
    "MATLAB",
    "TFLite",
    "Keras archive",
    "TorchScript",
    "zip",
    "TensorFlow graph",
    "TensorFlow saved model",
    "MXNet",
    "Torch7",
    "Darknet",
    "pickled arrays",
    "pickled arrays, old",
]


@pytest.mark.parametrize("name", ["vgg16_20M.caffemodel", "iter_8.safetensors", "weights.pth", "weights.h5"])
@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files_given_as_weights(tmp_path, kind, name):
    content, message = other_files(tmp_path)[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_weights(build_model("vgg16_largefov", width_divisor=64), tmp_path / name)
    assert message in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("content", [bytes(500), bytes(range(7, 90)) * 9])
def test_a_file_of_no_known_kind_given_as_weights(tmp_path, content):
    (tmp_path / "net.caffemodel").write_bytes(content)
    with pytest.raises(InputError, match="neither a file of Caffe's nor of another kind that is read"):
        load_weights(build_model("vgg16_largefov", width_divisor=64), tmp_path / "net.caffemodel")


@pytest.mark.parametrize("kind", ["lfs", "html", "gzip", "tar"])
def test_other_files_given_as_cues_and_labels(tmp_path, kind):
    content, message = other_files(tmp_path)[kind]
    (tmp_path / "c.pickle").write_bytes(content)
    for read in (CueFile.open, lambda path: read_labels(path, ["background", "cat"])):
        with pytest.raises(InputError) as caught:
            read(tmp_path / "c.pickle")
        assert f"c.pickle: {message}" in str(caught.value) or f"c.pickle: a {message}" in str(caught.value)


def test_many_missing_layers_are_summed_up():
    report = load_weights(
        build_model("resnet101_aspp", width_divisor=64), CAFFE_FILES / "toy_iter_6.caffemodel"
    )
    assert "res2a_branch1, bn2a_branch1, scale2a_branch1 and 310 more; not in the model" in str(report)
    assert some(["a", "b"], 2) == "a, b"
