"""``repro train --solver`` with what our own nets' training has: ranks, lsuv, seed quality, COCO; shared weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from parity_tests.processes import run_processes
from repro.cli import run_command
from repro.data import write_cues, write_mask
from repro.models import load_net

SOLVER = """
net: "{net}" base_lr: 0.05 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.01
max_iter: 6 display: 1 random_seed: 3 snapshot: 3
"""
ROWS = """
layer { name: "d" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "{list}" batch_size: 5 } }
"""
SHARED = """
layer { name: "a.1" type: "InnerProduct" bottom: "data" top: "a" param { name: "w" } param { lr_mult: 2 }
  inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "r" type: "TanH" bottom: "a" top: "a" }
layer { name: "a.2" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } param { lr_mult: 2 }
  inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "b" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "cross" loss_weight: 0.5
  loss_param { ignore_label: 2 } }
layer { name: "size" type: "Reduction" bottom: "ip" top: "size" loss_weight: 0.01
  reduction_param { operation: SUMSQ } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }
"""


def written(at: Path, net: str, **paths: Path) -> str:
    """The solver's path, of a net whose paths are whole: other processes have another working folder."""
    for name, path in paths.items():
        net = net.replace(f"{{{name}}}", str(path))
    (at / "net.prototxt").write_text(f'name: "n" {net}')
    (at / "solver.prototxt").write_text(SOLVER.replace("{net}", str(at / "net.prototxt")))
    return str(at / "solver.prototxt")


@pytest.fixture
def numbers(tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["data"] = rng.normal(size=(12, 6)).astype(np.float32)
        file["label"] = rng.integers(0, 3, size=12).astype(np.float32)
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'rows.h5'}\n")
    return written(tmp_path, ROWS + SHARED, list=tmp_path / "list.txt")


def weights(run: Path, iteration: int = 6) -> dict[str, torch.Tensor]:
    (file,) = run.glob(f"*/iter_{iteration}.safetensors")
    return safetensors.torch.load_file(file)


def rows(run: Path, name: str = "log.csv") -> list[dict[str, str]]:
    (path,) = run.glob(f"*/{name}")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def train(solver: str, *more: str) -> int:
    return run_command(["train", "--solver", solver, "device=cpu", *more])


def test_two_processes_are_one(numbers, tmp_path):
    """Five rows for two; a mean over the labels that count, a sum and a figure, each in its own way."""
    assert train(numbers, f"output={tmp_path}/one") == 0
    command = ["train", "--solver", numbers, "device=cpu", f"output={tmp_path}/two"]
    statuses = run_processes(command, tmp_path / "log", ranks=2)
    assert statuses == [0, 0], (tmp_path / "log").read_text()
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, blob in one.items():
        torch.testing.assert_close(two[name], blob, rtol=1e-5, atol=1e-6, msg=name)
    for row, twin in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert row.keys() == twin.keys()
        for name in ("loss", "cross", "size", "accuracy"):
            assert float(twin[name]) == pytest.approx(float(row[name]), rel=1e-5, abs=1e-6), name


def test_a_run_with_shared_parameters_resumes_to_the_same_bits(numbers, tmp_path):
    assert train(numbers, f"output={tmp_path}/whole") == 0
    assert train(numbers, f"output={tmp_path}/parts") == 0
    for path in [*tmp_path.glob("parts/*/iter_6.*"), *tmp_path.glob("parts/*/done.json")]:
        path.unlink()
    assert train(numbers, f"output={tmp_path}/parts") == 0
    whole, parts = (weights(tmp_path / name) for name in ("whole", "parts"))
    assert torch.equal(whole["a.1.weight"], whole["a.2.weight"])
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


@pytest.mark.parametrize("precision", ["faithful", "double"])
def test_lsuv_scales_what_no_file_fills(numbers, tmp_path, precision):
    """A weight that two layers share is scaled once, by the first; the classifier stays as it was drawn."""
    more = ("init.filler=lsuv", f"precision={precision}", "solver.base_lr=1e-12", f"output={tmp_path}/run")
    assert train(numbers, *more) == 0
    net = load_net(tmp_path / "net.prototxt", next(tmp_path.glob("run/*/iter_6.safetensors")))
    with h5py.File(tmp_path / "rows.h5") as file:
        data, label = (torch.from_numpy(file[name][:5]) for name in ("data", "label"))
    net["r"].forward = lambda x: x  # the size is that before the TanH
    size = net.forward_blobs({"data": data, "label": label})["a"].square().mean().sqrt()
    assert float(size) == pytest.approx(1, rel=1e-5)
    (step,) = json.loads((tmp_path / "run" / "manifest.json").read_text())["steps"].values()
    assert [*step["filler"]] == ["a.1"]


CUED = """
layer { name: "conv" type: "Convolution" bottom: "images" top: "conv"
  convolution_param { num_output: {classes} kernel_size: 1 stride: 8 weight_filler { type: "gaussian" std: 0.001 } } }
layer { name: "softmax" type: "Python" bottom: "conv" top: "probs"
  python_param { module: "pylayers" layer: "SoftmaxLayer" } }
layer { name: "seed" type: "Python" bottom: "probs" bottom: "cues" top: "loss-Seed" loss_weight: 1
  python_param { module: "pylayers" layer: "BalancedSeedLossLayer" } }
"""
VOC = """
layer { name: "i" type: "ImageData" top: "origin" top: "id" transform_param { mean_value: 104 }
  image_data_param { source: "{list}" root_folder: "{folder}/" batch_size: 2 new_height: 17 new_width: 17 } }
layer { name: "s" type: "Python" bottom: "id" bottom: "origin" top: "labels" top: "cues" top: "images"
  python_param { module: "pylayers" layer: "AnnotationLayer" param_str: "{'cues': '{cues}', 'mirror': True}" } }
"""
COCO = """
layer { name: "s" type: "Python" top: "labels" top: "cues" top: "images"
  python_param { module: "pylayers" layer: "AnnotationLayerCOCO"
    param_str: "{'source': '{list}', 'root': '{folder}/', 'batch_size': 2, 'new_size': (17, 17)}" } }
"""


@pytest.fixture
def cued(tmp_path):
    """Four images of 17x17 with cues on a grid of 3x3, and masks; what the cues say is right but for one cell."""
    rng, entries = np.random.default_rng(0), {}
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (17, 17, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
        mask = np.zeros((17, 17), np.uint8)
        mask[:, 9:] = index + 1
        (tmp_path / "masks").mkdir(exist_ok=True)
        write_mask(tmp_path / "masks" / f"{index}.png", mask)
        cues = np.full((3, 3), 255, np.uint8)
        cues[0, 0], cues[1, 2], cues[2, 0] = 0, index + 1, index + 1
        write_mask(tmp_path / f"{index}_cues.png", cues)
        entries[index] = (np.array([index + 1]), np.array([[0, index + 1, index + 1], [0, 1, 2], [0, 2, 0]]))
    write_cues(tmp_path / "cues.h5", entries, (3, 3))
    (tmp_path / "voc.txt").write_text("".join(f"{index}.png {index}\n" for index in range(4)))
    (tmp_path / "coco.txt").write_text("".join(f"{index}.png {index}_cues.png\n" for index in range(4)))
    return tmp_path


@pytest.mark.parametrize(("data", "classes"), [("voc", 21), ("coco", 81)])
def test_truth_is_for_the_log_of_the_seeds_quality(cued, data, classes):
    """Of a class 5 rows of 6 pixels are right, 6 rows of 6 wrong; the background is right."""
    net = (VOC if data == "voc" else COCO) + CUED.replace("{classes}", str(classes))
    solver = written(cued, net, list=cued / f"{data}.txt", folder=cued, cues=cued / "cues.h5")
    assert train(solver, f"output={cued}/blind") == 0
    assert train(solver, f"data.truth_root={cued}/masks", f"output={cued}/run") == 0
    quality = rows(cued / "run", "seed_quality.csv")
    assert [(row["epoch"], row["iteration"]) for row in quality] == [
        ("0", "0"),
        ("1", "2"),
        ("2", "4"),
        ("3", "6"),
    ]
    assert {tuple(list(row.values())[2:]) for row in quality} == {tuple(list(quality[0].values())[2:])}
    assert float(quality[0]["precision"]) == pytest.approx((1 + 4 * 30 / 66) / 5)
    blind, seeing = (weights(cued / name) for name in ("blind", "run"))
    assert all(torch.equal(blind[name], seeing[name]) for name in blind)
    assert rows(cued / "blind") == rows(cued / "run")
    assert float(rows(cued / "run")[0]["loss-Seed"]) > 0


@pytest.mark.long
def test_two_processes_share_the_images_of_coco(cued):
    solver = written(cued, COCO + CUED.replace("{classes}", "81"), list=cued / "coco.txt", folder=cued)
    more = f"data.truth_root={cued}/masks"
    assert train(solver, more, f"output={cued}/one") == 0
    command = ["train", "--solver", solver, "device=cpu", more, f"output={cued}/two"]
    assert run_processes(command, cued / "log", ranks=2) == [0, 0], (cued / "log").read_text()
    assert rows(cued / "one", "seed_quality.csv") == rows(cued / "two", "seed_quality.csv")
    one, two = (weights(cued / name) for name in ("one", "two"))
    for name, blob in one.items():
        torch.testing.assert_close(two[name], blob, rtol=1e-5, atol=1e-7, msg=name)
