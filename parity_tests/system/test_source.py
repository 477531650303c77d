"""Nets as plain PyTorch modules: the written file, in a process that has nothing of this project, gives our outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from parity_tests.conftest import CAFFE_FILES, assert_close
from parity_tests.public_nets import PUBLIC_NETS, SLOW, build
from parity_tests.recorded_layers import in_test_phase, parameters
from repro.errors import InputError
from repro.export.net import write_module
from repro.models.literals import Code, literal
from repro.models.net import CaffeNet, load_net
from repro.models.source import net_source

REL = 1e-6
PROGRAM = """
import importlib.util, json, os, sys
import numpy as np, torch
torch.set_num_threads(1)
for name in ("repro", "weights_conversion"):
    sys.modules[name] = None  # importing it raises ImportError
for line in sys.stdin:
    folder, names, output = json.loads(line)
    os.chdir(folder)
    spec = importlib.util.spec_from_file_location("written", folder + "/out.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    inputs = np.load("in.npz")
    with torch.no_grad():
        result = module.load()(*(torch.from_numpy(inputs[name]) for name in names))
    result = result if isinstance(result, dict) else {output: result}
    np.savez("result.npz", **{str(i): value.numpy() for i, value in enumerate(result.values())})
    print("done", flush=True)
"""
WITHOUT = (  # layers that are for training, or change a batch's size by what they read
    *(f"{kind}/" for kind in ("Accuracy", "Filter", "SegAccuracy")),
    *(f"{kind}/" for kind in ("ContrastiveLoss", "EuclideanLoss", "HingeLoss", "InfogainLoss")),
    *(f"{kind}/" for kind in ("MultinomialLogisticLoss", "SigmoidCrossEntropyLoss", "SoftmaxWithLoss")),
    *(f"graph/{name}" for name in ("msc_shared", "propagate_down", "shared_params", "two_losses")),
)


@pytest.fixture(scope="module")
def stranger() -> Iterator[subprocess.Popen[str]]:
    """A process that has PyTorch and nothing of this project; one for all nets, for PyTorch takes seconds to load."""
    command = [sys.executable, "-I", "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": ""}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, cwd="/", stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run_elsewhere(stranger, tmp_path):
    """``run_elsewhere(net, inputs)``: the outputs of the written module in that process."""

    def run(net: CaffeNet, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        write_module(net, tmp_path / "out.py", inputs=[inputs])
        np.savez(tmp_path / "in.npz", **inputs)
        print(json.dumps([str(tmp_path), [*net.inputs], net.outputs[0]]), file=stranger.stdin, flush=True)
        assert stranger.stdout.readline() == "done\n"
        return list(np.load(tmp_path / "result.npz").values())

    return run


def same(net: CaffeNet, inputs: dict[str, np.ndarray], found: list[np.ndarray], what: str) -> None:
    with torch.no_grad():
        wanted = net.forward_some({k: torch.from_numpy(v) for k, v in inputs.items()}, *net.outputs)
    for name, want, got in zip(net.outputs, wanted, found, strict=True):
        assert_close(torch.from_numpy(got), want, REL, f"{what}: {name}", relative_to_max=True)


LARGE = [
    pytest.param(name, marks=pytest.mark.long) for name in ("GoogLeNet", "FCN-8s", "HED", "DeepLab-v1-MSc")
]


@pytest.mark.parametrize("name", ["SegNet", "MTCNN-O", *LARGE])
def test_a_public_net(name, tmp_path, run_elsewhere):
    net, image = build(name, tmp_path)
    same(net, {"data": image}, run_elsewhere(net, {"data": image}), name)


@pytest.mark.parametrize("name", ["vgg16_aspp", pytest.param("resnet101_aspp", marks=pytest.mark.long)])
def test_a_recorded_net(name, tmp_path, run_elsewhere):
    net = load_net(CAFFE_FILES / f"{name}_deploy.prototxt", CAFFE_FILES / f"{name}.caffemodel")
    image = np.random.default_rng(0).normal(0, 50, (1, 3, 65, 81)).astype(np.float32)
    same(net, {"images": image}, run_elsewhere(net, {"images": image}), name)


@pytest.mark.parametrize("name", in_test_phase())
def test_a_recorded_layer(golden, name, tmp_path):
    recorded = golden("layers_caffe")[name]
    (tmp_path / "net.prototxt").write_text(recorded.attrs["prototxt"])
    net = load_net(tmp_path / "net.prototxt")
    if name.startswith(WITHOUT):
        with pytest.raises(InputError, match="cannot be written in plain PyTorch"):
            net_source(net, "out.safetensors")
        return
    with torch.no_grad():
        for layer, index, values in parameters(recorded, "params"):
            net.params[layer][index].copy_(torch.from_numpy(values))
    inputs = {blob: np.asarray(values[()]) for blob, values in recorded["inputs"].items()}
    _, found = write_module(net, tmp_path / "out.py", inputs=[inputs])
    assert max(difference.relative for difference in found) <= REL


@pytest.mark.parametrize("name", [name for name in PUBLIC_NETS if name not in SLOW])
def test_the_text_is_that_of_a_file(name, tmp_path):
    """It compiles, names every layer, and nothing of this project but in words."""
    net, _ = build(name, tmp_path)
    text = net_source(net, "out.safetensors")
    compile(text, "out.py", "exec")
    assert all(f"# {layer.name} ({layer.type})" in text for layer in net.layers)
    assert "import repro" not in text
    assert "from repro" not in text


def test_names_that_python_has_not_are_kept_for_the_weights(tmp_path, run_elsewhere):
    """Layers and blobs of any name: keywords, functions that the text uses, two that differ in punctuation alone."""
    (tmp_path / "net.prototxt").write_text(
        'input: "max_pool" input_shape { dim: 1 dim: 2 dim: 7 dim: 7 }'
        + "".join(
            f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
            f'convolution_param {{ num_output: 2 kernel_size: 1 weight_filler {{ type: "xavier" }} }} }}'
            for name, bottom in (
                ("a/b", "max_pool"),
                ("a.b", "a/b"),
                ("forward", "a.b"),
                ("lambda", "forward"),
            )
        )
        + 'layer { name: "1x1" type: "Pooling" bottom: "lambda" top: "torch" pooling_param {'
        " kernel_size: 3 stride: 2 } }"
    )
    net = load_net(tmp_path / "net.prototxt")
    image = {"max_pool": np.random.default_rng(0).normal(size=(1, 2, 7, 7)).astype(np.float32)}
    same(net, image, run_elsewhere(net, image), "odd names")
    written = load_net(tmp_path / "net.prototxt", tmp_path / "out.safetensors")
    same(written, image, [net(torch.from_numpy(image["max_pool"])).detach().numpy()], "weights read again")


def test_names_run_no_code(tmp_path, run_elsewhere):
    """Names of the net, its layers, types and blobs go into comments, the docstring and tables, never into code."""
    never = tmp_path / "never"
    code = f"open({str(never)!r}, 'w')"
    hostile = [f"a\\n{code}", f'\\"\\"\\"\\n{code}', f"\\r\\n    {code} #", "back\\\\"]
    text, bottom = (
        f'name: "\\"\\"\\"\\n{code}\\n" input: "x" input_shape {{ dim: 1 dim: 2 dim: 3 dim: 3 }}',
        "x",
    )
    for name in hostile:
        text += f'layer {{ name: "{name}" type: "ReLU" bottom: "{bottom}" top: "{name}" }}'
        bottom = name
    text += 'layer { name: "c" type: "Convolution" bottom: "x" top: "c" '
    text += "convolution_param { num_output: 1 kernel_size: 1 } }"
    (tmp_path / "net.prototxt").write_text(text)
    net = load_net(tmp_path / "net.prototxt")
    image = {"x": np.random.default_rng(0).normal(size=(1, 2, 3, 3)).astype(np.float32)}
    same(net, image, run_elsewhere(net, image), "hostile names")
    assert len(net.outputs) == 2
    assert not never.exists()


def test_shared_parameters_are_one(tmp_path, run_elsewhere):
    layer = (
        'layer {{ name: "{0}" type: "InnerProduct" bottom: "{1}" top: "{0}" param {{ name: "w" }} '
        'inner_product_param {{ num_output: 3 bias_term: false weight_filler {{ type: "xavier" }} }} }}'
    )
    (tmp_path / "net.prototxt").write_text(
        'input: "x" input_shape { dim: 2 dim: 3 }' + layer.format("one", "x") + layer.format("two", "one")
    )
    net = load_net(tmp_path / "net.prototxt")
    x = {"x": np.ones((2, 3), np.float32)}
    same(net, x, run_elsewhere(net, x), "shared")
    assert "self.two.weight = self.one.weight" in (tmp_path / "out.py").read_text()


def test_nothing_is_written_that_differs(tmp_path, monkeypatch):
    net, image = build("MTCNN-P", tmp_path)
    monkeypatch.setattr(
        "repro.models.layer_types.reductions.Softmax.source", lambda _, code, x: f"{x} * 1.001"
    )
    with pytest.raises(InputError, match=r"output 'prob1' differs from the net's by .* nothing is written"):
        write_module(net, tmp_path / "out.py", inputs=[{"data": image}])
    assert [path.name for path in tmp_path.iterdir()] == ["net.prototxt"]


def test_literals():
    assert literal(float(np.float32(1e-4))) == "0.0001"
    assert literal([1, (2,)]) == "(1, (2,))"
    assert literal(Code("x")) == "x"
    assert eval(literal(float("inf"))) == float("inf")
