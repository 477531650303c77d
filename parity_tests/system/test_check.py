"""``repro check``: any prototxt beside OpenCV's Caffe importer or a recording, and what it prints.

What OpenCV cannot run is in the table; what it runs otherwise than Caffe is known by the recordings of layers.
"""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from parity_tests.conftest import CAFFE_FILES, GOLDEN
from parity_tests.recorded_layers import recordings
from repro.cli import run_command
from repro.errors import InputError
from repro.models import load_caffe_weights, load_net
from repro.models.folding import fold_batch_norm
from repro.parity.opencv import beside_opencv, example_inputs
from weights_conversion import save_safetensors

NETS = ("vgg16_aspp", "vgg16_largefov", "vgg16_cam", "vgg16_bg", "resnet101_aspp")
SMALL = 'input: "data" input_shape { dim: 1 dim: 3 dim: 9 dim: 8 }'


def files(name: str):
    return CAFFE_FILES / f"{name}_deploy.prototxt", CAFFE_FILES / f"{name}.caffemodel"


def check(capfd, *arguments) -> tuple[int, str, str]:
    status = run_command(["check", *map(str, arguments)])
    captured = capfd.readouterr()  # of the process, so that OpenCV's own lines count
    return status, captured.out, captured.err


@pytest.fixture
def opencv():
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip("OpenCV 5 has no Caffe importer")


def layer_net(folder, *layers: str):
    """A prototxt of these layers, named ``l0``, ``l1`` … from ``data`` to ``b0``, ``b1`` …"""
    bottoms = ["data", *(f"b{index}" for index in range(len(layers)))]
    text = "".join(
        f'layer {{ name: "l{i}" bottom: "{bottoms[i]}" top: "b{i}" {layer} }}\n'
        for i, layer in enumerate(layers)
    )
    path = folder / "net.prototxt"
    path.write_text(f"{SMALL}\n{text}")
    return path


@pytest.mark.parametrize("name", NETS)
def test_every_blob_of_the_recorded_files(name, opencv):
    prototxt, caffemodel = files(name)
    net = load_net(prototxt, caffemodel, phase="train")
    found = beside_opencv(net, example_inputs(net), caffemodel=caffemodel)
    assert (found.first, found.note) == (None, "")
    assert [row.blob for row in found.rows] == list(dict.fromkeys(layer.top for layer in net.layers))
    assert all(row.relative is not None for row in found.rows)
    assert net.training  # as it was


def test_a_layer_that_differs_is_found(opencv):
    """One weight of conv3_2 is off: everything above agrees, and the verdict names it."""
    prototxt, caffemodel = files("vgg16_largefov")
    net = load_net(prototxt, caffemodel)
    with torch.no_grad():
        net["conv3_2"].weight[0, 0, 1, 1] += 0.01
    found = beside_opencv(net, example_inputs(net), caffemodel=caffemodel)
    assert (found.first.layer, found.first.type, found.first.in_place) == (
        "conv3_2",
        "Convolution",
        ("relu3_2",),
    )
    assert found.first.index[:2] == (0, 0)
    assert found.lines()[-1].startswith(
        "first difference: layer conv3_2 (Convolution), then relu3_2 in-place, blob"
    )
    assert beside_opencv(net, example_inputs(net)).first is None  # with its own weights
    rows = {row.layer: row for row in found.rows}
    assert not rows["conv3_1"].differs
    assert rows["fc8-SEC"].differs


def test_a_folded_net_is_a_caffe_net_too(opencv):
    net = load_net(*files("resnet101_aspp"))
    folded = fold_batch_norm(net)
    found = beside_opencv(folded, example_inputs(folded))
    assert found.first is None
    assert len(found.rows) == 143


@pytest.mark.parametrize("name", recordings())
def test_opencv_never_contradicts_caffe(name, golden, tmp_path, opencv):
    """A recorded layer of Caffe's is equal, or the table says that OpenCV cannot run it."""
    recorded = golden("layers_caffe")[name]
    (tmp_path / "net.prototxt").write_text(recorded.attrs["prototxt"])
    net = load_net(tmp_path / "net.prototxt")
    with torch.no_grad():
        for layer, blobs in recorded.get("params", {}).items():
            for index, values in blobs.items():
                net.params[layer][int(index)].copy_(torch.as_tensor(values[()]))
    inputs = {blob: np.asarray(values[()]) for blob, values in recorded["inputs"].items()}
    refused = ""
    try:
        found = beside_opencv(net, inputs)
    except InputError as error:
        refused = str(error)
    if refused:
        assert re.search("OpenCV (has no importer for |cannot run it: |ignores )", refused)
        return
    assert found.first is None, found.lines()
    for row in found.rows:
        assert row.relative is not None or row.note.startswith("OpenCV")


def test_a_layer_without_importer_is_in_the_table(opencv, tmp_path, capfd):
    """The other layers are compared, each alone, those after it too."""
    path = layer_net(
        tmp_path,
        'type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } }',
        'type: "Threshold"',
        'type: "LRN" lrn_param { k: 2 }',
        'type: "Pooling" pooling_param { kernel_size: 2 stride: 2 }',
    )
    status, out, _ = check(capfd, path)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == (
        "OpenCV ignores k of layer l2: each layer is compared alone, on the blobs that ours reads"
    )
    assert lines[3].endswith("-           OpenCV has no importer for Threshold")
    assert lines[4].endswith("-           OpenCV ignores k of layer l2")
    assert lines[5].split()[:4] == ["l3", "Pooling", "b3", "1x4x4x3"]
    assert re.search(r"^2 blobs equal those of OpenCV's importer .*; 2 not compared$", lines[-1])
    status, _, err = check(capfd, layer_net(tmp_path, 'type: "Threshold"'))
    assert status == 2
    assert err.endswith("OpenCV can run no layer of this net: OpenCV has no importer for Threshold\n")


@pytest.mark.parametrize(
    ("layer", "note"),
    [
        (
            'type: "InnerProduct" inner_product_param { num_output: 2 transpose: true '
            'weight_filler { type: "xavier" } }',
            "OpenCV ignores transpose of layer l1",
        ),
        *(
            (
                f'type: "LRN" lrn_param {{ local_size: 3 norm_region: {region} }}',
                "OpenCV's default for alpha, which layer l1 leaves out, is not Caffe's",
            )
            for region in ("ACROSS_CHANNELS", "WITHIN_CHANNEL")
        ),
    ],
)
def test_what_opencv_reads_otherwise_is_no_difference(opencv, tmp_path, capfd, layer, note):
    status, out, _ = check(capfd, layer_net(tmp_path, 'type: "ReLU"', layer))
    assert status == 0
    assert out.splitlines()[0] == f"{note}: each layer is compared alone, on the blobs that ours reads"
    assert out.splitlines()[3].endswith(f"-           {note}")


@pytest.mark.parametrize("after", ['type: "ReLU"', 'type: "Threshold"'])
def test_the_holes_of_deeplab_are_compared(opencv, tmp_path, capfd, after):
    """As a whole, and where the layers run alone."""
    convolution = (
        'type: "Convolution" convolution_param '
        '{ num_output: 4 kernel_size: 3 %s weight_filler { type: "xavier" } }'
    )
    path = layer_net(tmp_path, convolution % "hole: 2 pad: 2", convolution % "hole_h: 2 hole_w: 1", after)
    status, out, _ = check(capfd, path)
    assert status == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("l")}
    assert rows["l0"][3] == "1x4x9x8"
    assert rows["l1"][3] == "1x4x5x6"
    assert out.startswith("OpenCV") == ("Threshold" in after)


def test_the_holes_of_a_deconvolution_are_left_out(opencv, tmp_path, capfd):
    upwards = 'type: "Deconvolution" convolution_param { num_output: 4 kernel_size: 3 hole: 2 }'
    status, out, _ = check(capfd, layer_net(tmp_path, 'type: "ReLU"', upwards))
    assert status == 0
    assert out.startswith("OpenCV ignores dilation of layer l1")


def test_layers_of_other_phases_are_not_given_to_opencv(opencv, tmp_path, capfd):
    path = layer_net(
        tmp_path,
        'type: "Power" power_param { scale: 2 } include { phase: TEST }',
        'type: "ReLU"',
    )
    path.write_text(
        path.read_text()
        + 'layer { name: "l0" type: "Power" bottom: "data" top: "b0" include { phase: TRAIN } }'
    )
    assert check(capfd, path)[0] == 0


@pytest.mark.parametrize("form", ["_v1.caffemodel", ".caffemodel", ".safetensors"])
def test_weights_of_every_form(opencv, tmp_path, capfd, form):
    prototxt, weights = files("vgg16_largefov")
    if form == ".safetensors":
        save_safetensors(load_net(prototxt, weights), tmp_path / "n.safetensors")
        weights = tmp_path / "n.safetensors"
    else:
        weights = CAFFE_FILES / f"vgg16_largefov{form}"
    status, out, err = check(capfd, prototxt, weights)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert "loaded 16 of 16 layers from" in lines[0]
    assert re.match(
        r"conv1_1 +Convolution +conv1_1 +1x4x321x321 +\d\.\d\de-0\d +after relu1_1 in-place$", lines[2]
    )
    assert re.match(
        r"22 blobs equal those of OpenCV's importer within 1e-05 of their largest value; the furthest",
        lines[-1],
    )


def test_an_image_and_json(opencv, tmp_path, capfd):
    picture = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    path = layer_net(tmp_path, 'type: "ReLU"', 'type: "Threshold"')
    net = load_net(path)
    assert np.array_equal(example_inputs(net, tmp_path / "a.png")["data"][0, 2] + 123, picture[:, :, 0])
    status, out, _ = check(capfd, path, "--image", tmp_path / "a.png", "--json")
    found = json.loads(out)
    assert (status, found["equal"], found["net"], found["first_difference"]) == (0, True, str(path), None)
    assert [row["relative"] for row in found["rows"]] == [0, None]
    assert found["rows"][1]["note"] == "OpenCV has no importer for Threshold"


def test_random_inputs_follow_the_seed(tmp_path):
    net = load_net(layer_net(tmp_path, 'type: "ReLU"'))
    first, again, other = (example_inputs(net, seed=seed)["data"] for seed in (1, 1, 2))
    assert first.shape == (1, 3, 9, 8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def recording(folder, prototxt, weights, **changes):
    """A recording of the net's own blobs."""
    net = load_net(prototxt, weights)
    inputs = example_inputs(net)
    blobs = net.forward_blobs({name: torch.from_numpy(values) for name, values in inputs.items()})
    with h5py.File(folder / "blobs.h5", "w") as file:
        for name, values in inputs.items():
            file[f"inputs/{name}"] = values
        for name, values in blobs.items():
            file[f"blobs/{name}"] = changes.get(name, lambda x: x)(values.detach().numpy())
    return folder / "blobs.h5"


def test_beside_a_recording(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)  # it is not needed
    prototxt = layer_net(tmp_path, 'type: "ReLU"', 'type: "Power" power_param { scale: 3 }')
    path = recording(tmp_path, prototxt, None, b1=lambda x: x * np.float32(1.01))
    status, out, err = check(capfd, prototxt, "--recording", path)
    assert (status, err) == (1, "")
    assert re.match(r"l1 +Power +b1 +1x3x9x8 +9.90e-03 +DIFFERS$", out.splitlines()[3])
    assert out.splitlines()[-1].startswith("first difference: layer l1 (Power), blob b1: at (0, ")
    status, out, _ = check(capfd, prototxt, "--recording", path, "--json")
    first = json.loads(out)["first_difference"]
    assert (status, first["layer"], len(first["index"])) == (1, "l1", 4)
    assert first["value"] * 1.01 == pytest.approx(first["expected"])
    assert check(capfd, prototxt, "--recording", path, "--tolerance", 0.1)[0] == 0
    with h5py.File(path, "r+") as file:
        del file["blobs/b1"]
    assert check(capfd, prototxt, "--recording", path)[0] == 1
    assert check(capfd, prototxt, "--recording", path, "--partial")[0] == 0


def test_the_recorded_networks(capfd, tmp_path):
    """A group of networks.h5 as a file of its own: every blob of the original at 65x49."""
    prototxt, weights = files("vgg16_aspp")
    with h5py.File(GOLDEN / "networks.h5") as source, h5py.File(tmp_path / "blobs.h5", "w") as target:
        for name in ("blobs", "image_bgr"):
            source.copy(f"vgg16_aspp/65x49/{name}", target)
    status, out, _ = check(capfd, prototxt, weights, "--recording", tmp_path / "blobs.h5")
    assert status == 0
    assert "36 blobs equal those of " in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none.prototxt"], "none.prototxt: No such file or directory"),
        ([*reversed(files("resnet101_aspp"))], "of the kind caffemodel, a prototxt expected in its place"),
        ([CAFFE_FILES / "vgg16_aspp_deploy.prototxt", "none.caffemodel"], "none.caffemodel"),
        (
            [CAFFE_FILES / "vgg16_aspp_deploy.prototxt", files("resnet101_aspp")[1]],
            "none of its layers is in the net",
        ),
        (["net.prototxt", "--recording", "none.h5"], "none.h5: no such file"),
        (["net.prototxt", "--recording", "net.prototxt"], "net.prototxt: "),
        (["net.prototxt", "--image", "none.png"], "none.png: no such image file"),
        (["flat.prototxt", "--image", "none.png"], "none.png: the net's first input has the shape (4, 2)"),
        (
            ["net.prototxt", "--image", "a.png", "--recording", "b.h5"],
            "--image a.png: goes without --recording",
        ),
        (["net.prototxt", "--partial"], "--partial: goes with --recording"),
        (["net.prototxt", "--tolerance", "nan"], "--tolerance nan: expected 0 or more"),
        (["embed.prototxt"], "embed.prototxt: the net cannot run on these inputs: "),
    ],
)
def test_bad_requests_are_one_line(capfd, tmp_path, monkeypatch, opencv, arguments, reason):
    monkeypatch.chdir(tmp_path)
    layer_net(tmp_path, 'type: "ReLU"')
    inputs = 'input: "data" input_shape { dim: 4 dim: 2 }'
    (tmp_path / "flat.prototxt").write_text(
        inputs + 'layer { name: "l" type: "ReLU" bottom: "data" top: "y" }'
    )
    embed = (
        'layer { name: "l" type: "Embed" bottom: "data" top: "y" embed_param { num_output: 3 input_dim: 2 } }'
    )
    (tmp_path / "embed.prototxt").write_text(inputs + embed)
    status, _, err = check(capfd, *arguments)
    assert status == 2
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, "needs OpenCV's Caffe importer"),
        (SimpleNamespace(dnn=object(), __version__="5.0.0"), r"OpenCV \(5.0.0\) has no"),
    ],
)
def test_without_an_importer_one_line_says_what_to_install(capfd, tmp_path, monkeypatch, module, reason):
    monkeypatch.setitem(sys.modules, "cv2", module)
    status, _, err = check(capfd, layer_net(tmp_path, 'type: "ReLU"'))
    assert status == 2
    assert re.search(f"{reason}.*: pip install 'opencv-python-headless<5', or compare with a recording", err)
    assert err.count("\n") == 1


def test_what_the_weights_lack_is_said_and_compared(opencv, tmp_path, capfd):
    prototxt, weights = files("vgg16_largefov")
    text = prototxt.read_text()
    (tmp_path / "n.prototxt").write_text(
        text + 'layer { name: "top" type: "InnerProduct" bottom: "fc8-SEC" top: "top" '
        'inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }'
    )
    status, out, _ = check(capfd, tmp_path / "n.prototxt", weights)
    assert status == 0
    assert out.splitlines()[0].endswith("not in the file, kept as they were: top")
    report = load_caffe_weights(load_net(tmp_path / "n.prototxt"), weights)
    assert report.missing == ["top"]
