"""Nets that Caffe would refuse, or that are not run here: one line that names the layer, in Python and with status 2;
and the example of docs/design.md."""

from __future__ import annotations

import re

import pytest
import torch

from parity_tests.conftest import CAFFE_FILES, ROOT
from repro.cli import run_command
from repro.errors import InputError
from repro.models import load_net

DATA = 'layer { name: "data" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }\n'


def layer(name: str, type_: str, bottom: str, top: str, more: str = "") -> str:
    return f'layer {{ name: "{name}" type: "{type_}" bottom: "{bottom}" top: "{top}" {more} }}\n'


CONV = "convolution_param { num_output: 4 kernel_size: 3 }"
BAD = {
    "nobody makes it": (
        layer("relu", "ReLU", "y", "z"),
        r"layer 'relu' \(ReLU\): bottom: 'y': no layer makes it",
    ),
    "made later": (
        layer("a", "ReLU", "y", "z") + layer("b", "ReLU", "x", "y"),
        r"layer 'a' \(ReLU\): bottom: 'y': layer 'b', which makes it, comes later",
    ),
    "cycle": (
        layer("a", "ReLU", "z", "y") + layer("b", "ReLU", "y", "z"),
        r"layer 'a' \(ReLU\): bottom: 'z': layer 'b', which makes it, comes later",
    ),
    "itself": (layer("a", "ReLU", "a", "a"), r"layer 'a' \(ReLU\): bottom: 'a': "),
    "two tops": (
        layer("a", "ReLU", "x", "y") + layer("b", "TanH", "x", "y"),
        r"layer 'b' \(TanH\): top: 'y' is made twice, by 'a' too",
    ),
    "two tops of one layer": (
        'layer { name: "s" type: "Slice" bottom: "x" top: "y" top: "y" }',
        r"layer 's' \(Slice\): .*'y'",
    ),
    "no type": ('layer { name: "a" bottom: "x" top: "y" }', r"layer 'a' \(\): type: the layer has none"),
    "unknown type": (
        layer("a", "Mish2", "x", "y"),
        r"'Mish2' is not known; did you mean 'Swish'\?; add it .*@repro\.models\.register\(\"Mish2\"\), see docs",
    ),
    "recurrent": (layer("a", "LSTM", "x", "y"), r"layer 'a' \(LSTM\): .*recurrent layers are left out"),
    "detection": (
        layer("a", "ROIPooling", "x", "y"),
        r"layer 'a' \(ROIPooling\): .*detection layers are left out",
    ),
    "for a GPU alone": (layer("a", "DenseCRF", "x", "y"), r"layer 'a' \(DenseCRF\): .*runs on a GPU"),
    "python": (
        layer("a", "Python", "x", "y", 'python_param { module: "mine" layer: "Mine" }'),
        r"layer 'a' \(Python mine\.Mine\): .*@repro\.models\.register\(\"mine\.Mine\"\)",
    ),
    "kernel": (
        layer("a", "Convolution", "x", "y", "convolution_param { num_output: 4 kernel_size: 9 }"),
        r"layer 'a' \(Convolution\): ",
    ),
    "groups": (
        layer("a", "Convolution", "x", "y", "convolution_param { num_output: 4 kernel_size: 1 group: 2 }"),
        r"layer 'a' \(Convolution\): convolution_param\.group: ",
    ),
    "sum": (
        layer("a", "Convolution", "x", "y", CONV)
        + 'layer { name: "sum" type: "Eltwise" bottom: "x" bottom: "y" top: "z" }',
        r"layer 'sum' \(Eltwise\): ",
    ),
    "bottoms": (layer("a", "Eltwise", "x", "y"), r"layer 'a' \(Eltwise\): 1 bottoms, expected 2 or more"),
    "shared": (
        layer("a", "Convolution", "x", "y", f'param {{ name: "w" }} {CONV}')
        + layer("b", "Convolution", "y", "z", f'param {{ name: "w" }} {CONV}'),
        r"layer 'b' \(Convolution\): param\.name: 'w' has the shape \(4, 3, 3, 3\) in layer 'a', here \(4, 4, 3, 3\)",
    ),
    "field": (
        layer("a", "ReLU", "x", "y", "relu_param { slope: 1 }"),
        r"layer 'a': relu_param\.slope: a field",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_one_line_names_the_layer(tmp_path, capsys, name):
    text, reason = BAD[name]
    path = tmp_path / "net.prototxt"
    path.write_text(f'name: "n"\n{DATA}{text}')
    with pytest.raises(InputError) as caught:
        load_net(path, phase="train")
    found = str(caught.value)
    assert re.search(reason, found), found
    assert str(path) in found
    assert "\n" not in found
    (tmp_path / "solver.prototxt").write_text(f'net: "{path}" base_lr: 1 lr_policy: "fixed" max_iter: 1')
    assert (
        run_command(["train", "--solver", str(tmp_path / "solver.prototxt"), f"output={tmp_path}/run"]) == 2
    )
    line = capsys.readouterr().err
    assert re.search(reason, line), line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_example_of_the_design_page_runs(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "design.md").read_text()
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    space: dict = {}
    for block in blocks:
        exec(block, space)


def test_a_layer_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    empty = torch.empty

    def refuse(*shape, **options):
        if options:  # on the meta device
            return empty(*shape, **options)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("repro.models.net_builder.torch.empty", refuse)
    (tmp_path / "n.prototxt").write_text(f'name: "n" {DATA}{layer("a", "Convolution", "x", "y", CONV)}')
    with pytest.raises(
        InputError, match=r"layer 'a' \(Convolution\): its weight of \(4, 3, 3, 3\) does not fit"
    ):
        load_net(tmp_path / "n.prototxt")


def test_check_names_our_net_that_a_file_would_fit(tmp_path, capsys):
    conv = layer("conv1_1", "Convolution", "x", "y", "convolution_param { num_output: 5 kernel_size: 3 }")
    (tmp_path / "n.prototxt").write_text(f'name: "n" {DATA}{conv}')
    weights = CAFFE_FILES / "vgg16_largefov.caffemodel"
    assert run_command(["check", str(tmp_path / "n.prototxt"), str(weights)]) == 2
    said = capsys.readouterr().err
    assert "layer 'conv1_1', blob '0' (weight): shape (4, 3, 3, 3) in the file, expected (5, 3, 3, 3)" in said
    assert "the file fits vgg16_largefov (num_classes 21, width_divisor 16)" in said
    assert said.count("\n") == 1
