"""The watch on collapse: it tells a dead net once, and none of the recorded trainings, nor one that has only begun."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from parity_tests.conftest import CAFFE_FILES
from parity_tests.recorded_files import SMALL, read_log, write_stage1_inputs
from repro.cli import run_command
from repro.config import load_config
from repro.layers import caffe_softmax
from repro.models import build_model
from repro.training.collapse import AT_FLOOR, ONE_CLASS, CollapseWatch, loss_floor
from repro.training.objectives import stage1_objective
from repro.training.rows import Row
from weights_conversion import load_weights


def told(caplog, seed, constrain, winners, *, classes: int = 21, terms: int = 2) -> list[str]:
    """What the watch says of a curve."""
    caplog.clear()
    watch = CollapseWatch(classes, terms)
    loop = SimpleNamespace(folder=Path("run/stage1"))
    for number, (a, b, c) in enumerate(np.broadcast(seed, constrain, winners)):
        metrics = {"loss": a + b, "loss-Seed": float(a), "loss-Constrain": float(b), "winners": float(c)}
        watch.after_row(loop, Row(number, 1e-3, metrics, 0.0))
    return list(caplog.messages)


def test_the_floor_is_what_the_softmax_gives():
    assert loss_floor(21) == pytest.approx(9.2124, abs=1e-4)
    scores = torch.zeros(1, 21, 1, 1)
    scores[0, 3] = 1e4
    assert -caffe_softmax(scores)[0, 0].log().item() == pytest.approx(loss_floor(21), rel=1e-6)


@pytest.mark.parametrize(("terms", "loss"), [(2, 9.21), (2, 18.42), (1, 9.21), (2, 9.4), (1, 9.0)])
def test_a_seed_loss_at_the_floor_is_told_once(caplog, terms, loss):
    (line,) = told(caplog, [5.0] + [loss] * 500, 0.0, 21, terms=terms)
    assert (
        f"run/stage1: the net has collapsed: in the last {AT_FLOOR} rows of the log, up to iteration {AT_FLOOR}"
        in line
    )
    assert "the seed loss stands at" in line
    assert "init.filler=lsuv" in line
    assert "solver.base_lr" in line
    assert "\n" not in line


def test_a_training_that_is_resumed_counts_on(caplog):
    """And tells nothing a second time."""
    loop, dead = SimpleNamespace(folder=Path("run")), {"loss-Seed": 9.21, "winners": 21.0}
    state: dict[str, torch.Tensor] = {}
    for number in range(AT_FLOOR + 5):
        watch = CollapseWatch(21, 2)
        watch.load_state_dict(state)
        watch.after_row(loop, Row(number, 1e-3, dead, 0.0))
        state = watch.state_dict()
    (line,) = caplog.messages
    assert f"up to iteration {AT_FLOOR - 1}," in line


def test_one_class_everywhere_is_told_once(caplog):
    (line,) = told(caplog, [3.0] * 1000, 0.3, 1)
    assert f"in the last {ONE_CLASS} rows of the log" in line
    assert "one class fills every map" in line


def test_what_does_not_last_is_not_told(caplog):
    nearly = [9.21] * (AT_FLOOR - 1) + [8.0]
    assert told(caplog, nearly * 10, 0.0, 21) == []
    assert told(caplog, 3.0, 0.3, ([1] * (ONE_CLASS - 1) + [2]) * 3) == []
    # 81 classes before anything is learnt: both terms near log 81, and a CRF that has something to change
    assert told(caplog, [2 * np.log(81) + 0.3] * 100, 0.11, 40, classes=81) == []
    # a plain seed loss has one floor, and without one nothing is at it
    assert told(caplog, [18.42] * 100, 0.0, 21, terms=1) == []
    assert told(caplog, [9.21] * 100, 0.0, 21, terms=0) == []


@pytest.mark.parametrize("name", ["stage1", "real_stage1"])
def test_no_alarm_on_the_recordings(golden, caplog, name):
    """Background may fill every map of theirs from the first iteration to the last."""
    recorded = golden(name)
    assert told(caplog, recorded["loss_Seed"][()], recorded["loss_Constrain"][()], 1) == []


def test_no_alarm_on_the_outcome_recording(shared, caplog):
    with h5py.File(shared / "golden" / "outcome" / "curve.h5") as recorded:
        assert told(caplog, recorded["loss_Seed"][()], recorded["loss_Constrain"][()], 1) == []


def test_winners_are_the_classes_that_win_a_cell():
    objective = stage1_objective(load_config("dsrg_vgg16_voc").stage1.loss)
    scores = torch.zeros(2, 21, 5, 5, requires_grad=True)
    with torch.no_grad():
        scores[0, 4], scores[1, 7], scores[1, 2, 3, 3] = 1, 1, 2
    batch = {
        "images": torch.zeros(2, 3, 33, 33),
        "labels": torch.ones(2, 21),
        "cues": torch.zeros(2, 21, 5, 5),
    }
    batch["cues"][:, 0, 0, 0] = 1
    assert objective(lambda images: scores, batch).metrics["winners"] == 3


def test_a_saturated_net_is_told_in_training(golden, tmp_path, caplog):
    """Class 20 wins everywhere by a bias of 10,000, and no image shows it."""
    write_stage1_inputs(golden("stage1"), tmp_path, every=2)
    net = build_model("vgg16_aspp", width_divisor=16)
    load_weights(net, CAFFE_FILES / "stage1_init.caffemodel")
    state = net.state_dict()
    state["fc8-SEC_1.bias"][20] = 1e4
    save_file(state, tmp_path / "dead.safetensors")
    arguments = [
        *("train", "--stage", "1", "--config", "dsrg_vgg16_voc", "device=cpu", "model.width_divisor=16"),
        *(f"data.image_root={tmp_path}/images", f"data.list={tmp_path}/list.txt", "data.workers=0"),
        *(f"data.cues={tmp_path}/localization_cues.pickle", "data.batch_size=1", "solver.base_lr=1e-5"),
        *SMALL[1],
        *(
            f"init.weights={tmp_path}/dead.safetensors",
            f"output={tmp_path}/run",
            f"solver.max_iter={AT_FLOOR + 2}",
        ),
    ]
    with caplog.at_level(logging.WARNING):
        assert run_command(arguments) == 0
    (line,) = (text for text in caplog.messages if "has collapsed" in text)
    assert f"up to iteration {AT_FLOOR - 1}, the seed loss stands at 18.4" in line
    log = read_log(tmp_path / "run" / "stage1")
    assert "winners" not in log  # the log is as it was
    np.testing.assert_allclose(log["loss-Seed"], 2 * loss_floor(21), rtol=1e-3)
