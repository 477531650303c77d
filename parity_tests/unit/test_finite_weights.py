"""NaN and infinity in a weight file: whatever would compute with them, or write them, refuses and names the layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from parity_tests.conftest import CAFFE_FILES
from repro.cli import run_command
from repro.models import build_model, load_net
from repro.solver import build_solver
from repro.training.train import take_over
from weights_conversion import (
    CaffeFileError,
    load_weights,
    read_solverstate,
    save_safetensors,
    write_caffemodel,
    write_solverstate,
)
from weights_conversion.mapping import named_tensors
from weights_conversion.npz_files import write_npz

NET = """input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }
layer { name: "conv1_1" type: "Convolution" bottom: "data" top: "a" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "fc6" type: "Convolution" bottom: "a" top: "b" convolution_param { num_output: 2 kernel_size: 1 } }
"""


def write_state_dict(net: nn.Module, path: Path) -> None:
    torch.save({key: tensor.double() for key, tensor in named_tensors(net).items()}, path)


WRITERS = {
    ".caffemodel": write_caffemodel,
    ".caffemodel.h5": write_caffemodel,
    ".safetensors": save_safetensors,
    ".pth": write_state_dict,
    ".npz": lambda net, path: write_npz(named_tensors(net), path),
}


@pytest.fixture
def prototxt(tmp_path) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    return path


def spoiled(prototxt: Path, layer: str, value: float, suffix: str) -> Path:
    net = load_net(prototxt)
    with torch.no_grad():
        net[layer].weight.view(-1)[1] = value
    path = prototxt.with_name(f"x{suffix}")
    WRITERS[suffix](net, path)
    return path


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("suffix", WRITERS)
def test_no_file_is_converted(prototxt, tmp_path, capsys, suffix, value):
    source = spoiled(prototxt, "fc6", value, suffix)
    for net in ([], [str(prototxt)]):
        for target in ("y.safetensors", "y.caffemodel", "y.npz", *(["y.py"] if net else [])):
            assert run_command(["convert", *net, str(source), str(tmp_path / target)]) == 2
            line = capsys.readouterr().err
            assert f"{source}: layer 'fc6', blob " in line
            assert "1 of 8 values are NaN or infinity" in line
            assert len(line.splitlines()) == 1
            assert not (tmp_path / target).exists()


def test_no_net_takes_them_and_it_stays_as_it_was(prototxt):
    source = spoiled(prototxt, "fc6", float("nan"), ".safetensors")
    net = load_net(prototxt)
    before = net["conv1_1"].weight.clone()
    with pytest.raises(CaffeFileError, match="layer 'fc6'"):
        load_weights(net, source)
    assert torch.equal(net["conv1_1"].weight, before)


def test_a_layer_that_is_not_used_may_hold_anything(prototxt, tmp_path):
    source = spoiled(prototxt, "fc6", float("nan"), ".caffemodel")
    (tmp_path / "first.prototxt").write_text("".join(NET.splitlines(keepends=True)[:2]))
    net = load_net(tmp_path / "first.prototxt")
    assert load_weights(net, source).unused == ["fc6"]


def test_numbers_beyond_float32_are_infinite_there(tmp_path):
    torch.save({"conv1_1.weight": torch.full((4, 3, 3, 3), 1e39, dtype=torch.float64)}, tmp_path / "x.pth")
    with pytest.raises(CaffeFileError, match="108 of 108 values are NaN or infinity"):
        load_weights(without_bias(), tmp_path / "x.pth")


def without_bias() -> nn.Module:
    net = nn.Module()
    net.add_module("conv1_1", nn.Conv2d(3, 4, 3, bias=False))
    return net


def test_large_numbers_whose_sum_is_infinite_are_numbers(tmp_path):
    net = without_bias()
    nn.init.constant_(net.conv1_1.weight, 3e38)
    save_safetensors(net, tmp_path / "x.safetensors")
    assert load_weights(without_bias(), tmp_path / "x.safetensors").loaded == ["conv1_1"]


def test_inspect_shows_them(prototxt, capsys):
    assert run_command(["inspect", str(spoiled(prototxt, "fc6", float("nan"), ".caffemodel"))]) == 0
    assert "1 not finite" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".solverstate", ".solverstate.h5"])
def test_a_solver_state_of_a_diverged_run(tmp_path, capsys, suffix):
    state = read_solverstate(CAFFE_FILES / "toy_iter_6.solverstate")
    state.history[1].flat[0] = np.inf
    source, target = tmp_path / f"x{suffix}", tmp_path / "y.solverstate"
    write_solverstate(source, state.iter, state.current_step, state.history, "net")
    assert run_command(["convert", str(source), str(target)]) == 2
    assert f"{source}: history 1: 1 of 6 values are NaN or infinity" in capsys.readouterr().err
    assert not target.exists()
    net = build_model("vgg16_largefov", width_divisor=64)
    solver = build_solver(net, {"type": "SGD", "base_lr": 0.1, "lr_policy": "fixed", "max_iter": 10})
    with pytest.raises(CaffeFileError, match="history 1"):
        take_over(solver, str(source))
