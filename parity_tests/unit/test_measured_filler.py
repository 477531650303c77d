"""The filler ``lsuv``: what it scales, to what size, and that it happens once a run, the same on every rank."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from parity_tests.conftest import CAFFE_FILES
from parity_tests.processes import run_processes
from parity_tests.recorded_files import write_stage1_inputs
from repro.cli import run_command
from repro.config import load_config
from repro.data import CueDataset, CueFile, make_loader
from repro.errors import InputError
from repro.models import build_model
from repro.training.batches import Batches
from repro.training.measured_filler import fill_by_first_batch, needs_measuring, scale_to_unit_outputs
from repro.training.train import fill_new_layers
from weights_conversion import load_weights

HIDDEN = [f"fc{number}_{branch}" for branch in range(1, 5) for number in (6, 7)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, golden) -> Path:
    """The recorded images with cues and list, and ``convolutions.safetensors``: conv1_1 … conv5_3 of the net alone."""
    folder = tmp_path_factory.mktemp("inputs")
    write_stage1_inputs(golden("stage1"), folder)
    net = build_model("vgg16_aspp", width_divisor=16)
    load_weights(net, CAFFE_FILES / "stage1_init.caffemodel")
    tensors = {name: value for name, value in net.state_dict().items() if name.startswith("conv")}
    save_file(tensors, folder / "convolutions.safetensors")
    return folder


def call(inputs: Path, output: Path, *more: str) -> list[str]:
    return [
        *("train", "--stage", "1", "--config", "dsrg_vgg16_voc", "device=cpu", "model.width_divisor=16"),
        *(f"data.image_root={inputs}/images", f"data.list={inputs}/list.txt", "data.workers=0"),
        *(f"data.cues={inputs}/localization_cues.pickle", "data.batch_size=3", "solver.base_lr=1e-5"),
        *(f"init.weights={inputs}/convolutions.safetensors", "init.filler=lsuv", f"output={output}", *more),
    ]


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "whole"
    assert run_command(call(inputs, output, "solver.max_iter=2", "solver.snapshot=1")) == 0
    return output


def sizes(net, images) -> dict[str, float]:
    """The root mean square of each hidden layer's output before its ReLU, dropout off."""
    found = {}
    for name in HIDDEN:
        net.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: found.update(
                {name: output.square().mean().sqrt().item()}
            )
        )
    with torch.no_grad():
        net.eval()(images)
    return found


def test_new_layers_get_outputs_of_size_one_and_all_others_stay(inputs):
    net = build_model("vgg16_aspp", width_divisor=16)
    net.fill("lsuv", torch.Generator().manual_seed(3))
    missing = load_weights(net, inputs / "convolutions.safetensors").missing
    assert needs_measuring(net, missing) == HIDDEN
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cues = CueFile.open(inputs / "localization_cues.pickle")
    dataset = CueDataset(inputs / "images", cues.lines(inputs / "list.txt"), cues)
    net.train()
    measured = fill_by_first_batch(net, missing, Batches(dataset, 3, True, 3, workers=0, iter_size=1).first)
    assert net.training

    batch = next(iter(make_loader(dataset, 3, shuffle=True, seed=3)))
    for name, size in sizes(net, batch["images"]).items():
        assert size == pytest.approx(1, rel=1e-5), name
    assert list(measured) == HIDDEN
    for name, value in net.state_dict().items():
        layer, _, kind = name.rpartition(".")
        factor = measured[layer]["factor"] if layer in HIDDEN and kind == "weight" else 1
        torch.testing.assert_close(value, before[name] * factor, rtol=1e-6, atol=0)
    assert measured["fc6_1"]["factor"] == pytest.approx(1 / measured["fc6_1"]["measured"])
    # the classifiers are small, as in the releases
    assert before["fc8-SEC_1.weight"].std() == pytest.approx(0.01, rel=0.1)


def test_a_whole_net_keeps_the_size_of_its_activations():
    net = build_model("resnet101_largefov", width_divisor=16)
    net.fill("lsuv", torch.Generator().manual_seed(0))
    layers = needs_measuring(net, [layer.name for layer in net.layers])
    assert "conv1" in layers
    assert not any(name.startswith(("bn", "scale", "fc1")) for name in layers)
    images = torch.randn(2, 3, 65, 65, generator=torch.Generator().manual_seed(1)) * 50
    scale_to_unit_outputs(net, layers, images)
    for name, found in scale_to_unit_outputs(net, layers, images).items():
        assert found["measured"] == pytest.approx(1, rel=1e-4), name


def test_a_layer_over_dead_features_is_named():
    net = build_model("vgg16_largefov", width_divisor=16)
    with torch.no_grad():
        net.conv5_3.weight.zero_()
    with pytest.raises(
        InputError, match=r"init\.filler=lsuv: layer fc6 gives outputs of size 0 on the first"
    ):
        scale_to_unit_outputs(net, ["fc6", "fc7"], torch.ones(1, 3, 65, 65))
    assert net.training  # and no hook is left
    net(torch.ones(1, 3, 65, 65))


def test_the_manifest_says_what_was_scaled(whole):
    entry = json.loads((whole / "manifest.json").read_text())["steps"]["stage1"]
    assert list(entry["filler"]) == HIDDEN
    for found in entry["filler"].values():
        assert found["measured"] > 0
        assert found["factor"] == pytest.approx(1 / found["measured"])
    assert entry["settings"]["stage1"]["init"]["filler"] == "lsuv"


def test_the_same_call_gives_the_same_bits_and_resuming_does_not_fill_again(inputs, whole, tmp_path):
    want = (whole / "stage1" / "iter_2.safetensors").read_bytes()
    again, cut = tmp_path / "again", tmp_path / "cut"
    assert run_command(call(inputs, again, "solver.max_iter=2")) == 0
    assert (again / "stage1" / "iter_2.safetensors").read_bytes() == want

    shutil.copytree(whole, cut)
    (cut / "manifest.json").unlink()
    for name in ("iter_2.safetensors", "iter_2.state", "done.json"):
        (cut / "stage1" / name).unlink()
    assert run_command(call(inputs, cut, "solver.max_iter=2")) == 0
    assert (cut / "stage1" / "iter_2.safetensors").read_bytes() == want
    records = [json.loads((run / "manifest.json").read_text())["steps"]["stage1"] for run in (whole, cut)]
    assert records[0]["filler"] == records[1]["filler"]


def test_two_processes_fill_alike(inputs, tmp_path):
    """Each rank's own batch would give it weights of its own."""
    more = ("solver.max_iter=1", "model.dropout=0")
    assert run_command(call(inputs, tmp_path / "one", *more)) == 0
    arguments = call(inputs, tmp_path / "two", *more)
    statuses = run_processes(arguments, tmp_path / "log", ranks=2)
    assert statuses == [0, 0], (tmp_path / "log").read_text()
    one, two = (load_file(tmp_path / name / "stage1" / "iter_1.safetensors") for name in ("one", "two"))
    for name in HIDDEN:
        np.testing.assert_allclose(two[f"{name}.weight"], one[f"{name}.weight"], rtol=0, atol=1e-5)


def test_the_classifiers_of_stage_0_take_it():
    """Their ``init.weights`` holds convolutions alone by design."""
    net = build_model("vgg16_bg", width_divisor=16, input_size=65)
    names = needs_measuring(net, ["relu6", "fc6", "fc7", "fc8"])
    assert names == ["fc6", "fc7"]
    images = torch.randn(2, 3, 65, 65, generator=torch.Generator().manual_seed(1)) * 50
    net.fill("lsuv", torch.Generator().manual_seed(0))
    scale_to_unit_outputs(net, names, images)
    assert scale_to_unit_outputs(net, names, images)["fc6"]["measured"] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("mini", "stage1.init.weights is not given: every layer starts from random values (filler looks_linear); the "
         "embedded set's net is trained on further images first, which repro reproduce alone does"),
        ("dsrg_vgg16_voc", "(filler gaussian); the papers start from ImageNet's weights (vgg16_20M"),
    ],
)  # fmt: skip
def test_what_a_start_from_random_values_misses_is_said(caplog, profile, said):
    config = load_config(profile, ["model.width_divisor=16"])
    fill_new_layers(config, 1, config.stage1.init, config.build_net(), [], Batches)
    (line,) = caplog.messages
    assert said in line


@pytest.mark.parametrize(("filler", "said"), [("gaussian", 1), ("lsuv", 0), ("msra", 0)])
def test_it_is_suggested_where_the_weights_lack_layers(inputs, tmp_path, caplog, filler, said):
    assert run_command(call(inputs, tmp_path, f"init.filler={filler}", "solver.max_iter=1")) == 0
    lines = [text for text in caplog.messages if "add stage1.init.filler=lsuv" in text]
    assert len(lines) == said
    for line in lines:
        assert f"convolutions.safetensors: has no {', '.join(HIDDEN)};" in line
