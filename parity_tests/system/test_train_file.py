"""``repro train --solver`` of nets that are not ours: their own data layers, losses, test nets and templates."""

from __future__ import annotations

import csv
import json

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from repro.cli import run_command
from repro.training.caffe_solver import load_solver
from weights_conversion.mapping import read_safetensors

NET = """
name: "small"
layer { name: "d" type: "HDF5Data" top: "data" top: "label" include { phase: TRAIN }
  hdf5_data_param { source: "train.txt" batch_size: 4 } }
layer { name: "d" type: "HDF5Data" top: "data" top: "label" include { phase: TEST }
  hdf5_data_param { source: "train.txt" batch_size: 6 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "cross" loss_weight: 0.5 }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
"""
SOLVER = """
net: "${NET}" base_lr: 0.1 lr_policy: "step" gamma: 0.5 stepsize: 4 momentum: 0.9 weight_decay: 0.01
max_iter: 9 display: 1 random_seed: 3 test_iter: 2 test_interval: 4 snapshot: 3
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with h5py.File("train.h5", "w") as file:
        file["data"] = rng.normal(size=(12, 5)).astype(np.float32)
        file["label"] = rng.integers(0, 3, size=12).astype(np.float32)
    (tmp_path / "train.txt").write_text("train.h5\n")
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    return tmp_path


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def train(*more):
    return run_command(
        ["train", "--solver", "solver.prototxt", "--set", "NET=net.prototxt", "device=cpu", *more]
    )


def weights(path):
    return {
        f"{layer}.{kind}": blob
        for layer, blobs in read_safetensors(path).items()
        for kind, blob in blobs.items()
    }


def test_a_net_of_a_file_trains_as_written(files):
    assert train("output=run") == 0
    reference = load_solver("solver.prototxt", variables={"NET": "net.prototxt"}).net
    reference.fill("file", torch.Generator().manual_seed(3))
    weight, bias = (blob.detach().clone() for blob in reference.params["ip"])
    with h5py.File("train.h5") as file:
        data, labels = torch.from_numpy(file["data"][()]), torch.from_numpy(file["label"][()]).long()
    history = [torch.zeros_like(weight), torch.zeros_like(bias)]
    log = rows(files / "run" / "train" / "log.csv")
    assert [int(row["iteration"]) for row in log] == list(range(9))
    for iteration in range(9):
        rate = 0.1 * 0.5 ** (iteration // 4)
        part = [(4 * iteration + index) % 12 for index in range(4)]
        parameters = [blob.clone().requires_grad_() for blob in (weight, bias)]
        loss = F.cross_entropy(data[part] @ parameters[0].T + parameters[1], labels[part])
        (0.5 * loss).backward()
        assert float(log[iteration]["cross"]) == pytest.approx(loss.item(), rel=1e-5)
        assert float(log[iteration]["loss"]) == pytest.approx(0.5 * loss.item(), rel=1e-5)
        assert float(log[iteration]["lr"]) == pytest.approx(rate)
        for index, (lr, decay) in enumerate(((1, 1), (2, 0))):
            gradient = parameters[index].grad + 0.01 * decay * parameters[index].detach()
            history[index] = 0.9 * history[index] + rate * lr * gradient
        weight, bias = weight - history[0], bias - history[1]
    found = weights(files / "run" / "train" / "iter_9.safetensors")
    torch.testing.assert_close(found["ip.weight"], weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["ip.bias"], bias, rtol=1e-5, atol=1e-6)


def test_the_test_net_shares_the_parameters_and_is_logged(files):
    assert train("output=run") == 0
    tests = rows(files / "run" / "train" / "test.csv")
    assert [int(row["iteration"]) for row in tests] == [0, 4, 8, 9]
    final = weights(files / "run" / "train" / "iter_9.safetensors")
    with h5py.File("train.h5") as file:
        data, labels = torch.from_numpy(file["data"][()]), torch.from_numpy(file["label"][()]).long()
    scores = data @ final["ip.weight"].T + final["ip.bias"]
    assert float(tests[-1]["accuracy"]) == pytest.approx((scores.argmax(1) == labels).float().mean().item())
    assert float(tests[-1]["cross"]) == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)


RANDOM = """
layer { name: "more" type: "DummyData" top: "noise" include { phase: TRAIN }
  dummy_data_param { shape { dim: 4 dim: 5 } data_filler { type: "gaussian" } } }
layer { name: "sum" type: "Eltwise" bottom: "data" bottom: "noise" top: "noisy" include { phase: TRAIN } }
layer { name: "drop" type: "Dropout" bottom: "noisy" top: "noisy" include { phase: TRAIN } }
layer { name: "image" type: "ImageData" top: "image" top: "id" include { phase: TRAIN }
  image_data_param { source: "images.txt" batch_size: 4 shuffle: true rand_skip: 3 }
  transform_param { crop_size: 3 mirror: true } }
layer { name: "small" type: "InnerProduct" bottom: "image" top: "small" include { phase: TRAIN }
  inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 0.001 } } }
layer { name: "size" type: "Reduction" bottom: "small" top: "size" loss_weight: 0.001 include { phase: TRAIN }
  reduction_param { operation: SUMSQ } }
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_resumes_to_the_same_bits(files, workers):
    """Shuffled rows and images, crops, mirrors, noise and dropout are functions of seed and place."""
    rng = np.random.default_rng(1)
    for index in range(5):
        Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)).save(f"{index}.png")
    (files / "images.txt").write_text("".join(f"{index}.png {index}\n" for index in range(5)))
    for part in range(2):
        with h5py.File(f"more{part}.h5", "w") as file:
            file["data"] = rng.normal(size=(5 + part, 5)).astype(np.float32)
            file["label"] = rng.integers(0, 3, size=5 + part).astype(np.float32)
    (files / "more.txt").write_text("more0.h5\nmore1.h5\n")
    text = NET.replace('"train.txt" batch_size: 4', '"more.txt" batch_size: 4 shuffle: true')
    first, ip = text.split('layer { name: "ip"')
    (files / "net.prototxt").write_text(
        f'{first}{RANDOM}layer {{ name: "ip"' + ip.replace('bottom: "data"', 'bottom: "noisy"', 1)
    )
    (files / "solver.prototxt").write_text(
        SOLVER.replace("test_iter: 2 test_interval: 4", "iter_size: 2").replace("0.1 ", "0.01 ")
    )
    assert train("output=whole") == 0
    assert train("output=parts", f"data.workers={workers}") == 0
    for name in ("iter_6", "iter_9"):
        for ending in ("safetensors", "state"):
            (files / "parts" / "train" / f"{name}.{ending}").unlink()
    (files / "parts" / "train" / "done.json").unlink()
    assert run_command(["train", "--config", "parts/config.yaml"]) == 0  # the run's own configuration
    whole, parts = (weights(files / name / "train" / "iter_9.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logs = [(files / name / "train" / "log.csv").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert json.loads((files / "parts" / "manifest.json").read_text())["steps"]["train"]["resumed"]


def test_a_folder_of_another_net_is_refused(files, capsys):
    assert train("output=run") == 0
    text = (files / "net.prototxt").read_text()
    (files / "net.prototxt").write_text(text.replace("loss_weight: 0.5", "loss_weight: 0.25"))
    assert train("output=run") == 2
    assert "made with net =" in capsys.readouterr().err


def bad(files, capsys, old, new, name="net.prototxt"):
    text = (files / name).read_text()
    assert old in text
    (files / name).write_text(text.replace(old, new, 1))
    assert train("output=run") == 2
    assert not (files / "run").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('type: "SoftmaxWithLoss"', 'type: "Sofmax"', r"layer 'loss' (Sofmax): type: 'Sofmax' is not known"),
        (
            "num_output: 3",
            "num_outputs: 3",
            "layer 'ip': inner_product_param.num_outputs: a field that neither",
        ),
        ("loss_weight: 0.5", "loss_weight: 0", "no layer has a loss_weight"),
        (
            'bottom: "ip" bottom: "label" top: "cross"',
            'bottom: "x" bottom: "label" top: "cross"',
            "no layer makes it",
        ),
        ("train.txt", "none.txt", "none.txt"),
        ("batch_size: 4", "batch_size: 0", "layer 'd' (HDF5Data): hdf5_data_param.batch_size: 0, expected 1"),
    ],
)
def test_bad_nets_are_refused_by_layer_and_field(files, capsys, old, new, reason):
    found = bad(files, capsys, old, new)
    assert reason in found
    assert len(found.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("${NET}", "${MODEL}", "line 2: ${MODEL} has no value; give one with --set MODEL=VALUE"),
        ("test_interval: 4", "", "test_interval: expected 1 or more"),
        ("test_iter: 2", "test_iter: 0", "test_iter: expected 1 or more"),
        ("snapshot: 3", "snapshot_diff: true", "snapshot_diff: not supported"),
        ("max_iter: 9", "max_iter: 0", "max_iter: expected at least 1 iteration"),
        ("momentum: 0.9", "momentun: 0.9", "momentun: a field that neither"),
        ("base_lr: 0.1", 'base_lr: "fast"', "base_lr: expected a number"),
    ],
)
def test_bad_solvers_are_refused(files, capsys, old, new, reason):
    found = bad(files, capsys, old, new, "solver.prototxt")
    assert reason in found
    assert len(found.strip().splitlines()) == 1
