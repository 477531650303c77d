"""VGG16 and ResNet-101 from the files of Keras, ONNX, caffe-tensorflow and two PyTorch projects, told by content."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from parity_tests.conftest import CAFFE_FILES
from repro.cli import run_command
from repro.models import build_model
from weights_conversion import CaffeFileError, load_weights
from weights_conversion.mapping import read_weights
from weights_conversion.sources import READERS
from weights_conversion.vgg16_files import CONVOLUTIONS, FEATURES, KERAS

WIDTH = 16
BLOCKS = {caffe: keras for keras, caffe in KERAS.items()}
Weights = dict[str, tuple[np.ndarray, np.ndarray]]  # Caffe's name -> weight and bias, in Caffe's layout


@pytest.fixture(scope="module")
def weights() -> Weights:
    model = build_model("vgg16_largefov", width_divisor=WIDTH)
    load_weights(model, CAFFE_FILES / "vgg16_largefov.caffemodel")
    found = {}
    for name in (*CONVOLUTIONS, "fc6", "fc7"):
        layer = model.get_submodule(name)
        found[name] = (layer.weight.detach().numpy(), layer.bias.detach().numpy())
    return found


def rgb(name: str, weight: np.ndarray) -> np.ndarray:
    return weight[:, ::-1] if name == "conv1_1" else weight


def hwio(weight: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0))


# --- writers of each form ---------------------------------------------------------------------------------


def keras_1(path: Path, weights: Weights) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"input_1", b"block1_conv1"]
        file.create_group("block1_pool")
        for name in CONVOLUTIONS:
            group = file.create_group(BLOCKS[name])
            group[f"{BLOCKS[name]}_W_1:0"], group[f"{BLOCKS[name]}_b_1:0"] = (
                hwio(weights[name][0]),
                weights[name][1],
            )
        group = file.create_group("fc1")
        group["fc1_W_1:0"], group["fc1_b_1:0"] = np.zeros((5, 6), np.float32), np.zeros(6, np.float32)


def keras_2(path: Path, weights: Weights) -> None:
    with h5py.File(path, "w") as file:
        for name in CONVOLUTIONS:
            group = file.create_group(f"model_weights/{BLOCKS[name]}/{BLOCKS[name]}")
            group["kernel:0"], group["bias:0"] = hwio(weights[name][0]), weights[name][1]


def keras_3(path: Path, weights: Weights, *, root: str = "layers", named: bool = False) -> None:
    with h5py.File(path, "w") as file:
        for number, name in enumerate(CONVOLUTIONS):
            layer = BLOCKS[name] if named else f"conv2d_{number}" if number else "conv2d"
            group = file.create_group(f"{root}/{layer}/vars")
            group["0"], group["1"] = hwio(weights[name][0]), weights[name][1]
        file.create_group("layers/max_pooling2d/vars")
        file.create_group("optimizer/vars")["0"] = np.int64(3)


def keras_2_with_optimizer(path: Path, weights: Weights) -> None:
    """As ``model.save`` of TensorFlow 2.11 and later leaves it after a training."""
    keras_2(path, weights)
    with h5py.File(path, "a") as file:
        for slot in ("m", "v"):
            file[f"optimizer_weights/Adam/{slot}/block1_conv1/kernel:0"] = hwio(weights["conv1_1"][0]) * 2


def keras_2_unnamed(path: Path, weights: Weights) -> None:
    """The second net of a session, whose layers nobody named."""
    with h5py.File(path, "w") as file:
        for number, name in enumerate(CONVOLUTIONS, start=14):
            group = file.create_group(f"model_weights/conv2d_{number}/conv2d_{number}")
            group["kernel:0"], group["bias:0"] = hwio(weights[name][0]), weights[name][1]


def tensorflow_vgg(path: Path, weights: Weights) -> None:
    """Lists of weights and biases; names that are bytes, as Python 3 saves what it read with encoding="bytes"."""
    content = {name.encode(): [hwio(weights[name][0]), weights[name][1]] for name in CONVOLUTIONS}
    content[b"fc6"] = [np.zeros((8, 5), np.float32), np.zeros(5, np.float32)]
    with path.open("wb") as file:
        np.save(file, np.array(content, dtype=object), allow_pickle=True)


def frossard(path: Path, weights: Weights) -> None:
    content = {"fc6_W": np.zeros((8, 5), np.float32), "fc6_b": np.zeros(5, np.float32)}
    for name in CONVOLUTIONS:
        content[f"{name}_W"] = hwio(np.ascontiguousarray(rgb(name, weights[name][0])))
        content[f"{name}_b"] = weights[name][1]
    with path.open("wb") as file:
        np.savez(file, **content)


def caffe_tensorflow(path: Path, weights: Weights) -> None:
    content = {name: {"weights": hwio(weight), "biases": bias} for name, (weight, bias) in weights.items()}
    with path.open("wb") as file:
        np.save(file, np.array(content, dtype=object), allow_pickle=True)


def classifier_of_caffe_tensorflow(path: Path, weights: Weights) -> None:
    """The original's fc6, of another shape than DeepLab's."""
    content = {name: {"weights": hwio(weights[name][0]), "biases": weights[name][1]} for name in CONVOLUTIONS}
    content["fc6"] = {"weights": np.zeros((8, 5), np.float32), "biases": np.zeros(5, np.float32)}
    with path.open("wb") as file:
        np.save(file, np.array(content, dtype=object), allow_pickle=True)


def write_onnx(
    path: Path, names: dict[str, str], weights: Weights, *, raw: bool = True, nodes: bool = False
) -> None:
    """``names`` of the initializers, with ``{}`` for the blob."""
    tensors, graph_nodes, top = [], [], "x"
    for name, pattern in names.items():
        arrays = {"weight": np.ascontiguousarray(rgb(name, weights[name][0])), "bias": weights[name][1]}
        for blob, array in arrays.items():
            if raw:
                tensors.append(numpy_helper.from_array(array, pattern.format(blob)))
            else:
                tensors.append(
                    helper.make_tensor(
                        pattern.format(blob), TensorProto.FLOAT, array.shape, array.reshape(-1).tolist()
                    )
                )
        inputs = [top, *(pattern.format(blob) for blob in arrays)]
        graph_nodes.append(helper.make_node("Conv", inputs, [f"{name}_out"], pads=[1, 1, 1, 1]))
        top = f"{name}_out"
    shape = numpy_helper.from_array(np.array([1, -1], np.int64), "shape")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])
    out = helper.make_tensor_value_info(top, TensorProto.FLOAT, [1, None, None, None])
    graph = helper.make_graph(graph_nodes if nodes else [], "g", [value], [out], [*tensors, shape])
    onnx.save(helper.make_model(graph), path)


def onnx_torchvision(path: Path, weights: Weights) -> None:
    write_onnx(path, {name: f"features.{index}.{{}}" for index, name in FEATURES.items()}, weights)


def onnx_zoo(path: Path, weights: Weights) -> None:
    names = {name: f"vgg0_conv{number}_{{}}" for number, name in enumerate(CONVOLUTIONS)}
    write_onnx(path, names, weights, raw=False)


def onnx_numbered(path: Path, weights: Weights) -> None:
    write_onnx(path, {name: f"onnx::{name}_{{}}" for name in CONVOLUTIONS}, weights, nodes=True)


def onnx_constants(path: Path, weights: Weights) -> None:
    onnx_numbered(path, weights)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    onnx.save(model, path)


def keras_half(path: Path, weights: Weights) -> None:
    """As a policy of ``float16`` saves it; the values of these nets' files fit."""
    keras_2(path, {name: tuple(blob.astype(np.float16) for blob in blobs) for name, blobs in weights.items()})


def onnx_beside(path: Path, weights: Weights) -> None:
    """As torch.onnx.export leaves a net: the values in a second file."""
    onnx_torchvision(path, weights)
    onnx.save(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location=f"{path.name}.data",
        size_threshold=0,
    )


def torchvision_safetensors(path: Path, weights: Weights) -> None:
    tensors = {}
    for index, name in FEATURES.items():
        tensors[f"features.{index}.weight"] = torch.from_numpy(rgb(name, weights[name][0]).copy())
        tensors[f"features.{index}.bias"] = torch.from_numpy(weights[name][1])
    save_file(tensors, path)


FORMS = {
    "Keras 1": (keras_1, "VGG16 of Keras 1 or 2 (BGR)"),
    "Keras 2": (keras_2, "VGG16 of Keras 1 or 2 (BGR)"),
    "Keras 3": (keras_3, "VGG16 of Keras 3 (BGR)"),
    "Keras 3 by name": (lambda path, weights: keras_3(path, weights, named=True), "VGG16 of Keras 3 (BGR)"),
    "TensorFlow 2.12": (
        lambda path, weights: keras_3(path, weights, root="_layer_checkpoint_dependencies"),
        "VGG16 of Keras 3 (BGR)",
    ),
    "caffe-tensorflow": (caffe_tensorflow, "VGG16 of caffe-tensorflow (BGR)"),
    "caffe-tensorflow with classifier": (classifier_of_caffe_tensorflow, "VGG16 of caffe-tensorflow (BGR)"),
    "ONNX of torchvision": (onnx_torchvision, "torchvision VGG16 as ONNX (RGB)"),
    "ONNX model zoo": (onnx_zoo, "VGG16 of the ONNX model zoo (RGB)"),
    "ONNX, other names": (onnx_numbered, "VGG16 as ONNX, by the order of its convolutions (RGB)"),
    "Keras 2 beside its optimizer": (keras_2_with_optimizer, "VGG16 of Keras 1 or 2 (BGR)"),
    "Keras 2, unnamed layers": (keras_2_unnamed, "VGG16 of Keras 1 or 2 (BGR)"),
    "tensorflow-vgg": (tensorflow_vgg, "VGG16 of caffe-tensorflow (BGR)"),
    "Frossard": (frossard, "VGG16 of Frossard's vgg16_weights.npz (RGB)"),
    "ONNX, constants": (onnx_constants, "VGG16 as ONNX, by the order of its convolutions (RGB)"),
    "ONNX, values beside it": (onnx_beside, "torchvision VGG16 as ONNX (RGB)"),
    "safetensors of torchvision": (torchvision_safetensors, "safetensors, torchvision VGG16, features (RGB)"),
}


@pytest.mark.parametrize("form", FORMS)
def test_vgg16_is_told_by_content_and_copied_to_the_bit(tmp_path, weights, form):
    write, said = FORMS[form]
    path = tmp_path / "a file without an ending"
    write(path, weights)
    if path.read_bytes()[8:9] == b"{":
        path = path.rename(tmp_path / "x.safetensors")
    model = build_model("vgg16_largefov", width_divisor=WIDTH)
    report = load_weights(model, path)
    held = list(weights) if form == "caffe-tensorflow" else list(CONVOLUTIONS)
    assert report.loaded == held
    assert report.form == said
    assert ("conv1_1: input channels from RGB to BGR" in report.changes) == ("(RGB)" in said)
    for name in held:
        for tensor, want in zip(model.get_submodule(name).parameters(), weights[name], strict=True):
            assert torch.equal(tensor, torch.from_numpy(want)), name


@pytest.mark.parametrize("form", ["Keras 1", "caffe-tensorflow", "ONNX of torchvision"])
def test_convert_and_inspect_take_them_and_keep_the_provenance(tmp_path, capsys, weights, form):
    FORMS[form][0](tmp_path / "source", weights)
    target = tmp_path / "x.safetensors"
    command = ["convert", CAFFE_FILES / "vgg16_aspp_deploy.prototxt", tmp_path / "source", target]
    assert run_command([*map(str, command)]) == 0
    capsys.readouterr()
    assert run_command(["inspect", str(target)]) == 0
    assert f"from source: {FORMS[form][1]}, " in capsys.readouterr().out
    assert run_command(["inspect", str(tmp_path / "source")]) == 0
    assert f"source: {FORMS[form][1]}" in capsys.readouterr().out


# --- conv1_1 of the published net -------------------------------------------------------------------------


def with_first(first: np.ndarray) -> Weights:
    """A chain of convolutions, narrow above conv1_1 of full width."""
    rng, inputs, found = np.random.default_rng(0), 3, {}
    for name in CONVOLUTIONS:
        outputs = 64 if name == "conv1_1" else 2
        weight = first if name == "conv1_1" else rng.normal(size=(outputs, inputs, 3, 3))
        found[name] = (weight.astype(np.float32), np.zeros(outputs, np.float32))
        inputs = outputs
    return found


def published() -> np.ndarray:
    """(64, 3, 3, 3), BGR: the first filter is ImageNet's VGG16, to the four digits that anyone prints."""
    first = np.random.default_rng(1).normal(size=(64, 3, 3, 3))
    first[0, 0] = [[0.4295, 0.3735, -0.0614], [0.2748, 0.0387, -0.3672], [-0.0575, -0.2622, -0.3501]]
    first[0, 1] = [[0.5504, 0.4401, -0.0814], [0.3457, 0.0406, -0.4535], [-0.0586, -0.3307, -0.4850]]
    first[0, 2] = [[0.4800, 0.4085, -0.0651], [0.3105, 0.0502, -0.4034], [-0.0509, -0.2852, -0.4185]]
    return first


def read(path: Path, kind: str):
    return READERS[kind](path)


@pytest.mark.parametrize(
    ("write", "kind", "order"),
    [(keras_1, "keras", "BGR"), (caffe_tensorflow, "npy", "BGR"), (onnx_zoo, "onnx", "RGB")],
)
def test_the_published_conv1_1_decides_on_the_order_of_channels(tmp_path, write, kind, order):
    first = published()
    write(tmp_path / "x", with_first(first))
    found = read(tmp_path / "x", kind)
    assert torch.equal(found.layers["conv1_1"]["weight"], torch.from_numpy(first.astype(np.float32)))
    assert not any("by its values" in change for change in found.changes)
    write(tmp_path / "y", with_first(np.ascontiguousarray(first[:, ::-1])))  # the other way round
    turned = read(tmp_path / "y", kind)
    assert torch.equal(turned.layers["conv1_1"]["weight"], torch.from_numpy(first.astype(np.float32)))
    other = "BGR" if order == "RGB" else "RGB"
    assert f"conv1_1: by its values the input channels stand as {other}, not as {order}" in turned.changes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda first: first * 255, r"conv1_1 is 255 times the published one, .* another scale"),
        (lambda first: first + 0.1, r"conv1_1 is not that of the published VGG16, in neither order"),
        (lambda first: first * np.nan, r"conv1_1 is not that of the published VGG16"),
    ],
)
@pytest.mark.parametrize(
    ("write", "kind"), [(keras_3, "keras"), (caffe_tensorflow, "npy"), (onnx_torchvision, "onnx")]
)
def test_another_conv1_1_is_refused_in_one_line(tmp_path, write, kind, change, reason):
    write(tmp_path / "x", with_first(change(published())))
    with pytest.raises(CaffeFileError, match=reason) as caught:
        read(tmp_path / "x", kind)
    assert str(tmp_path / "x") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_published_values_are_those_of_the_file(shared):
    """The first filter of the weights that are handed out for trials, in torchvision's names and order."""
    model = build_model("vgg16_largefov")
    load_weights(model, shared / "weights" / "vgg16_conv.caffemodel")
    first = model.conv1_1.weight.detach().numpy()
    np.testing.assert_allclose(first[0], published()[0], atol=1e-4)


# --- what is refused --------------------------------------------------------------------------------------


def without(weights: Weights, name: str) -> Weights:
    return {key: value for key, value in weights.items() if key != name}


def theano(path: Path, weights: Weights) -> None:
    with h5py.File(path, "w") as file:
        for name in CONVOLUTIONS:
            group = file.create_group(BLOCKS[name])
            group[f"{BLOCKS[name]}_W"], group[f"{BLOCKS[name]}_b"] = weights[name]


def vgg19(path: Path, weights: Weights) -> None:
    keras_1(path, weights)
    with h5py.File(path, "a") as file:
        file["block3_conv4/block3_conv4_W_1:0"] = np.zeros((3, 3, 2, 2), np.float32)


def short_keras(path: Path, weights: Weights) -> None:
    keras_1(path, weights)
    with h5py.File(path, "a") as file:
        del file["block4_conv2"]


def other_npy(path: Path, weights: Weights) -> None:
    with path.open("wb") as file:
        np.save(file, np.array({"a": {"weights": np.zeros(3)}}, dtype=object), allow_pickle=True)


class Call:
    def __reduce__(self):
        return os.system, ("echo code from a pickle ran",)


def hostile_npy(path: Path, weights: Weights) -> None:
    header = np.lib.format.magic(1, 0) + (118).to_bytes(2, "little")
    text = "{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + "\n"
    path.write_bytes(header + text.encode() + pickle.dumps({"conv1_1": {"weights": Call()}}, protocol=2))


def plain_npy(path: Path, weights: Weights) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def external_onnx(path: Path, weights: Weights) -> None:
    onnx_torchvision(path, weights)
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../elsewhere")
    path.write_bytes(model.SerializeToString())


def missing_beside(path: Path, weights: Weights) -> None:
    onnx_beside(path, weights)
    path.with_name("x.data").unlink()


def short_beside(path: Path, weights: Weights) -> None:
    onnx_beside(path, weights)
    data = path.with_name("x.data")
    data.write_bytes(data.read_bytes()[:-64])


def repeated_beside(path: Path, weights: Weights) -> None:
    """All of them are the same bytes, and together more than there are."""
    onnx_beside(path, weights)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "0" if entry.key == "offset" else entry.value
    path.write_bytes(model.SerializeToString())
    data = path.with_name("x.data")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


def other_onnx(path: Path, weights: Weights) -> None:
    write_onnx(path, {name: f"{name}.{{}}" for name in CONVOLUTIONS[:3]}, weights, nodes=True)


def wrong_shape_onnx(path: Path, weights: Weights) -> None:
    onnx_torchvision(path, weights)
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 1 << 40
    path.write_bytes(model.SerializeToString())


REFUSED = {
    theano: r"kernel has the shape \(4, 3, 3, 3\); expected \(3, 3, 3, outputs\), TensorFlow's",
    vgg19: "more than 13 convolutions: VGG19",
    short_keras: r"no weights for block4_conv2 \(conv4_2\)",
    other_npy: "no layer conv1_1; its keys are 'a/weights'",
    hostile_npy: r"the pickle imports (posix|nt)\.system",
    plain_npy: r"an array of float64 \(3,\)",
    external_onnx: r"initializer 'features\.0\.weight': its values are in '\.\./elsewhere', a file beside this",
    missing_beside: r"its values are in 'x\.data', a file beside this one expected",
    short_beside: r"does not fit its \d+ bytes at \d+ of x\.data",
    repeated_beside: r"initializer 'features\.\d+\.weight': shape .* does not fit its \d+ bytes at 0 of x\.data",
    other_onnx: "an ONNX file with 3 convolutions",
    wrong_shape_onnx: r"initializer 'features\.0\.weight': shape \(1099511627776, 3, 3, 3\) does not fit",
}


@pytest.mark.parametrize("write", REFUSED, ids=lambda write: write.__name__)
def test_refused_in_one_line(tmp_path, capfd, weights, write):
    write(tmp_path / "x", weights)
    model = build_model("vgg16_largefov", width_divisor=WIDTH)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CaffeFileError, match=REFUSED[write]) as caught:
        load_weights(model, tmp_path / "x")
    assert "\n" not in str(caught.value)
    assert "code from a pickle ran" not in capfd.readouterr().out
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("write", [keras_1, keras_3, caffe_tensorflow, onnx_torchvision, onnx_zoo])
def test_cut_off_files_end_in_one_line(tmp_path, weights, write):
    write(tmp_path / "x", weights)
    data = (tmp_path / "x").read_bytes()
    model = build_model("vgg16_largefov", width_divisor=WIDTH)
    for share in (0.02, 0.5, 0.97):
        (tmp_path / "y").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CaffeFileError) as caught:
            load_weights(model, tmp_path / "y")
        assert "\n" not in str(caught.value)


def test_a_cut_off_onnx_file_is_not_taken_for_caffes(tmp_path, weights):
    onnx_torchvision(tmp_path / "x.onnx", weights)
    data = (tmp_path / "x.onnx").read_bytes()
    (tmp_path / "x.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(CaffeFileError, match=r"x\.onnx: ONNX model: field .* \(cut off\?\)"):
        read_weights(tmp_path / "x.onnx")


# --- DeepLab-v2's ResNet-101 ------------------------------------------------------------------------------

STAGES = {2: 3, 3: 4, 4: 23, 5: 3}


@pytest.fixture(scope="module")
def resnet():
    model = build_model("resnet101_aspp", width_divisor=WIDTH)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            if name.endswith(".factor"):
                tensor.fill_(1)
    return model


def caffe_block(stage: int, index: int) -> str:
    letters = [f"{stage}a", f"{stage}b", f"{stage}c"] if stage in (2, 5) else None
    return letters[index] if letters else f"{stage}b{index}" if index else f"{stage}a"


def kazuto(
    model, *, base: str = "base", shortcut: str = "shortcut", aspp: str = "aspp"
) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    content: dict[str, torch.Tensor] = {}
    add_pair(content, state, "conv1", "_conv1", f"{base}.layer1.conv1.conv", f"{base}.layer1.conv1.bn")
    branches = {"branch2a": "reduce", "branch2b": "conv3x3", "branch2c": "increase", "branch1": shortcut}
    for stage, count in STAGES.items():
        for index in range(count):
            for branch, name in branches.items():
                if branch != "branch1" or index == 0:
                    place, where = (
                        f"{caffe_block(stage, index)}_{branch}",
                        f"{base}.layer{stage}.block{index + 1}.{name}",
                    )
                    add_pair(content, state, f"res{place}", place, f"{where}.conv", f"{where}.bn")
    for number in range(4):
        for blob in ("weight", "bias"):
            content[f"{base}.{aspp}.c{number}.{blob}"] = state[f"fc1_voc12_c{number}.{blob}"]
    return content


def isht7(model) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    content: dict[str, torch.Tensor] = {}
    add_pair(content, state, "conv1", "_conv1", "Scale.conv1", "Scale.bn1")
    for stage, count in STAGES.items():
        for index in range(count):
            where = f"Scale.layer{stage - 1}.{index}"
            for number, branch in enumerate(("branch2a", "branch2b", "branch2c"), start=1):
                place = f"{caffe_block(stage, index)}_{branch}"
                add_pair(content, state, f"res{place}", place, f"{where}.conv{number}", f"{where}.bn{number}")
            if index == 0:
                place = f"{stage}a_branch1"
                add_pair(
                    content, state, f"res{place}", place, f"{where}.downsample.0", f"{where}.downsample.1"
                )
    for number in range(4):
        for blob in ("weight", "bias"):
            content[f"Scale.layer5.conv2d_list.{number}.{blob}"] = state[f"fc1_voc12_c{number}.{blob}"]
    return content


def add_pair(content, state, conv: str, norm: str, conv_key: str, norm_key: str) -> None:
    """A convolution of Caffe's name ``conv``, and ``bn…`` and ``scale…`` with ``norm`` behind, as PyTorch has them."""
    content[f"{conv_key}.weight"] = state[f"{conv}.weight"]
    content[f"{norm_key}.weight"], content[f"{norm_key}.bias"] = (
        state[f"scale{norm}.weight"],
        state[f"scale{norm}.bias"],
    )
    content[f"{norm_key}.running_mean"] = state[f"bn{norm}.mean"]
    content[f"{norm_key}.running_var"] = state[f"bn{norm}.variance"]
    content[f"{norm_key}.num_batches_tracked"] = torch.tensor(7)


DEEPLABS = {
    "kazuto1011": lambda model: kazuto(model),
    "kazuto1011, early": lambda model: kazuto(model, base="scale", shortcut="proj", aspp="aspp.stages"),
    "isht7": isht7,
    "in state_dict": lambda model: {"epoch": 3, "state_dict": kazuto(model)},
    "in model": lambda model: {"model": isht7(model), "iteration": 20000},
    "of DataParallel": lambda model: {f"module.{key}": value for key, value in kazuto(model).items()},
}


@pytest.mark.parametrize("form", DEEPLABS)
def test_deeplab_v2_of_two_projects(tmp_path, resnet, form):
    torch.save(DEEPLABS[form](resnet), tmp_path / "x")
    model = build_model("resnet101_aspp", width_divisor=WIDTH)
    report = load_weights(model, tmp_path / "x")
    assert not report.missing
    assert not report.unused
    assert ("isht7" if form in ("isht7", "in model") else "kazuto1011") in report.form
    got = model.state_dict()
    for name, want in resnet.state_dict().items():
        assert torch.equal(got[name], want), name


def test_a_batch_norm_is_batch_norm_and_scale(tmp_path, resnet):
    """The converted layers compute what PyTorch's batch norm does."""
    content = kazuto(resnet)
    torch.save(content, tmp_path / "x.pth")
    model = build_model("resnet101_aspp", width_divisor=WIDTH)
    load_weights(model, tmp_path / "x.pth")
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    key = "base.layer1.conv1.bn"
    want = torch.nn.functional.batch_norm(
        x, *(content[f"{key}.{blob}"] for blob in ("running_mean", "running_var", "weight", "bias")), eps=1e-5
    )
    torch.testing.assert_close(model.scale_conv1(model.bn_conv1(x)), want)


def test_a_batch_norm_that_is_not_whole_and_another_resnet_are_refused(tmp_path, resnet):
    content = kazuto(resnet)
    del content["base.layer4.block7.conv3x3.bn.running_var"]
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(
        CaffeFileError, match=r"base\.layer4\.block7\.conv3x3\.bn: no running_var; expected a batch norm"
    ):
        load_weights(resnet, tmp_path / "x.pth")
    # torchvision's: the same names as isht7's without Scale, on another scale of images
    plain = {key.removeprefix("Scale."): value for key, value in isht7(resnet).items() if "layer5" not in key}
    torch.save(plain, tmp_path / "y.pth")
    with pytest.raises(CaffeFileError, match="neither torchvision's VGG16 features"):
        load_weights(resnet, tmp_path / "y.pth")


def _with(state, **others):
    return {"epoch": 3, **{key: value(state) if callable(value) else value for key, value in others.items()}}


def same(state):
    return dict(state)


def halved(state):
    return {f"module.{key}": value / 2 for key, value in state.items()} | {"n_averaged": torch.tensor(5)}


SEVERAL = {  # entries -> which is taken, and which the line names
    "torchvision": ({"model": same, "model_ema": halved, "optimizer": {"state": {}}}, "model", "'model_ema'"),
    "mmengine": ({"ema_state_dict": halved, "state_dict": same}, "state_dict", "'ema_state_dict'"),
    "timm": ({"state_dict": same, "state_dict_ema": halved}, "state_dict", "'state_dict_ema'"),
    "tutorial": ({"model_state_dict": same, "optimizer_state_dict": {"state": {}}}, "model_state_dict", ""),
    "other parts": ({"model": same, "criterion": {"weight": torch.ones(2)}}, "model", ""),
    "shadow": ({"model": same, "ema": {"decay": 0.9, "shadow_params": [torch.ones(1)]}}, "model", "'ema'"),
    "average alone": ({"ema": same}, "ema", ""),
    "mean teacher": ({"teacher": halved, "student": same}, None, "'teacher', 'student'"),
}


@pytest.mark.parametrize("form", SEVERAL)
def test_a_checkpoint_of_several_sets_of_weights(tmp_path, caplog, form):
    entries, taken, named = SEVERAL[form]
    state = build_model("vgg16_largefov", width_divisor=16).state_dict()
    torch.save(_with(state, **entries), tmp_path / "x.pth")
    if taken is None:
        with pytest.raises(
            CaffeFileError, match="several sets of weights, 'teacher', 'student', expected one"
        ):
            read_weights(tmp_path / "x.pth")
        return
    found = read_weights(tmp_path / "x.pth")
    assert torch.equal(found.layers["conv1_1"].tensors["weight"], state["conv1_1.weight"])
    assert found.changes == [f"taken from the checkpoint's entry {taken!r}"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(named)
    if named:
        assert (
            f"{taken!r}, {named}; {taken!r} is taken; torch.save(torch.load(FILE, weights_only=True)[{named}]"
            in said[0]
        )
