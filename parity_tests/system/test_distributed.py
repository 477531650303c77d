"""Several processes as one run: the losses, weights, masks and scores of one process; what is left when one dies."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from parity_tests.conftest import CAFFE_FILES, REPRODUCE_MINI, assert_close
from parity_tests.processes import contents, rows, run_processes, run_under_torchrun
from parity_tests.recorded_files import SMALL, write_both
from parity_tests.tolerances import RANKS
from repro import distributed
from repro.cli import run_command
from repro.training.objectives import classifier_objective

INIT = f"{CAFFE_FILES}/stage1_init.caffemodel"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, golden) -> Path:
    return write_both(golden, tmp_path_factory.mktemp("inputs"))


def arguments(inputs: Path, stage: int, *more: str) -> list[str]:
    """Batches of three for two ranks, mirror, shuffle, crops, two mini-batches an iteration, gradients clipped."""
    folder = inputs / ("stage1" if stage == 1 else "retrain")
    files = (
        f"data.cues={folder}/localization_cues.pickle" if stage == 1 else f"data.label_root={folder}/labels"
    )
    return [
        *("train", "--stage", str(stage), "--config", "dsrg_vgg16_voc", "device=cpu", files),
        *(f"data.image_root={folder}/images", f"data.list={folder}/list.txt", "data.batch_size=3"),
        *("model.width_divisor=16", "model.dropout=0", "solver.iter_size=2", "solver.max_iter=3"),
        *("solver.base_lr=1e-5", "solver.clip_gradients=1", "data.workers=0", f"init.weights={INIT}"),
        *(*SMALL[stage], *more),
    ]


def compare(one: Path, several: Path) -> None:
    for want, got in zip(rows(one / "log.csv"), rows(several / "log.csv"), strict=True):
        for name in want:
            bound = 0 if name in ("iteration", "lr", "seeds") else RANKS
            assert_close(
                float(got[name]), float(want[name]), bound, f"{name} at iteration {want['iteration']}"
            )
    (weights,) = one.glob("*.safetensors")
    want, got = load_file(weights), load_file(several / weights.name)
    for name in want:
        assert_close(got[name], want[name], RANKS, name)


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        (1, ()),
        pytest.param(
            1,
            ("loss.variant=sec", "loss.seed=seed", "loss.cues=fixed", "loss.expand=true", "rows=[SEC]"),
            marks=pytest.mark.long,
        ),
        # double: in float32 even one process parts from itself (test_training.py)
        (2, ("precision=double",)),
    ],
    ids=["dsrg", "sec", "retrain"],
)
def test_two_processes_are_one(inputs, tmp_path, stage, more):
    call = arguments(inputs, stage, *more)
    assert run_command([*call, f"output={tmp_path}/one"]) == 0
    statuses = run_processes([*call, f"output={tmp_path}/two"], tmp_path / "log", ranks=2)
    assert statuses == [0, 0], (tmp_path / "log").read_text()
    compare(tmp_path / "one" / f"stage{stage}", tmp_path / "two" / f"stage{stage}")
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["processes"] == 2
    assert (tmp_path / "log").read_text().count("log.csv") == 1  # said once
    assert sorted(contents(tmp_path / "one")) == sorted(contents(tmp_path / "two"))


def test_torchrun_and_a_rank_that_is_killed(inputs, tmp_path):
    """The survivor leaves a snapshot and one clear line; the same command, or one process, resumes from it. torchrun's
    own command runs in ``test_clusters.py``."""
    call = [*arguments(inputs, 1), f"output={tmp_path}/run"]
    ended = run_under_torchrun(call, tmp_path / "log", ranks=2, wound=("kill", 3))
    assert -signal.SIGKILL in {failure.exitcode for failure in ended.failures.values()}
    folder = tmp_path / "run" / "stage1"
    assert (
        f"repro: {folder}: another of the 2 processes of this run has ended; the same command resumes from "
        f"iteration 2 ({folder}/iter_2.state)"
    ) in (tmp_path / "log").read_text()
    assert run_processes(call, tmp_path / "log", ranks=2) == [0, 0], (tmp_path / "log").read_text()
    assert run_command([*call[:-1], f"output={tmp_path}/one"]) == 0
    compare(tmp_path / "one" / "stage1", folder)


def test_a_signal_to_one_rank_stops_all_after_the_same_iteration(inputs, tmp_path):
    call = [*arguments(inputs, 1, "solver.max_iter=60"), f"output={tmp_path}/run"]
    statuses = run_processes(call, tmp_path / "log", ranks=2, wound=("term", 3))
    assert statuses == [143, 143], (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert "repro: " in said
    assert "stopped by SIGTERM; the same command resumes from iteration 3" in said


def test_too_few_images_for_the_processes(inputs, tmp_path):
    call = [*arguments(inputs, 1, "data.batch_size=1"), f"output={tmp_path}/run"]
    assert run_processes(call, tmp_path / "log", ranks=2) == [2, 2]
    said = (tmp_path / "log").read_text()
    assert "data.batch_size 1: expected at least one image for each of the 2 processes" in said
    assert not (tmp_path / "run").exists()


def test_a_whole_experiment(mini_root, tmp_path, no_figures):
    """Masks and scores of each rank's part are those of one process that continues from the same weights."""
    call = [
        *REPRODUCE_MINI,
        f"dataset.root={mini_root}",
        *("rows=[+DSRG, +Retrain]", "solver.max_iter=2", "data.batch_size=3", "data.workers=0"),
        *("dataset.train_limit=5", "dataset.val_limit=3", "inference.crf=false", "pseudo_labels.crf=false"),
        f"output={tmp_path}/r",
    ]
    statuses = run_processes(call, tmp_path / "log", ranks=2)
    assert statuses == [0, 0], (tmp_path / "log").read_text()
    two = contents(tmp_path / "r")
    for name in ("pseudo_labels", "predictions/stage1", "predictions/stage2"):
        for path in (tmp_path / "r" / name).iterdir():
            path.unlink()
    for path in (tmp_path / "r").glob("scores_*.json"):
        path.unlink()
    assert run_command(call) == 0
    assert contents(tmp_path / "r") == two


def test_a_classifiers_loss_is_a_sum_of_shares(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, generator=generator)
    labels = (torch.rand(5, 3, generator=generator) > 0.5).float()

    def loss(objective, part):
        batch = {"images": images[part], "labels": labels[part]}
        return objective(lambda scores: scores, batch).losses["loss"]

    whole = loss(classifier_objective(), slice(None))
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "add_up", lambda images: images * 0 + 5)
    shares = [loss(classifier_objective(), part) for part in (slice(0, 2), slice(2, 5))]
    np.testing.assert_allclose(sum(shares), whole, rtol=1e-6)


@pytest.mark.cuda
def test_two_gpus_are_one(inputs, tmp_path):
    """The same with NCCL."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    call = [argument.replace("cpu", "cuda") for argument in arguments(inputs, 1)]
    assert run_command([*call, f"output={tmp_path}/one"]) == 0
    assert run_processes([*call, f"output={tmp_path}/two"], tmp_path / "log", ranks=2) == [0, 0]
    compare(tmp_path / "one" / "stage1", tmp_path / "two" / "stage1")
