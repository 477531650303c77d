"""How the layers are wired into losses: what each of Table 2's rows and SEC minimise, and stage 2's corner cases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from parity_tests.conftest import assert_close
from repro.config import LossConfig, load_config
from repro.layers import (
    balanced_seed_loss,
    caffe_softmax,
    constrain_loss,
    crf_log,
    expand_loss,
    grow_seeds,
    mean_field_engine,
    refine,
    region_growing,
    seed_loss,
)
from repro.models import build_model
from repro.solver import CaffeSGD
from repro.training.loop import update
from repro.training.objectives import stage1_objective, stage2_objective


class Scores(torch.nn.Module):
    """A net whose scores are a parameter."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.scores = torch.nn.Parameter(4 * torch.randn(*shape, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scores


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    cues = torch.zeros(2, 4, 11, 11)
    cues[:, 0, :3], cues[:, 2, 5:7, 5:7] = 1, 1
    labels = torch.tensor([[1.0, 0, 1, 0]]).expand(2, 4)
    return {"images": torch.randn(2, 3, 81, 81, generator=generator) * 60, "labels": labels, "cues": cues}


ROWS = {
    "baseline": LossConfig(seed="seed", cues="fixed"),
    "+BSL": LossConfig(seed="balanced", cues="fixed"),
    "+DSRG": LossConfig(seed="balanced", cues="grown", theta_f=0.5, theta_b=0.6),
    "SEC": LossConfig(variant="sec", seed="seed", cues="fixed", expand=True),
}


def by_hand(row: str, model: Scores, batch: dict) -> dict:
    images, cues = batch["images"], batch["cues"]
    probs = caffe_softmax(model.scores)
    if row == "SEC":
        log_result, _ = crf_log(model.scores, images, variant="sec")
        return {
            "loss-Seed": seed_loss(probs, cues),
            "loss-Expand": expand_loss(probs, batch["labels"]),
            "loss-Constrain": constrain_loss(probs, log_result, clip=False),
        }
    log_result, raised = crf_log(probs, images, variant="dsrg")
    if row == "+DSRG":
        refined = refine(probs, images, variant="dsrg")
        cues = grow_seeds(batch["labels"], refined, cues, theta_f=0.5, theta_b=0.6)
    loss = seed_loss if row == "baseline" else balanced_seed_loss
    return {"loss-Seed": loss(raised, cues), "loss-Constrain": constrain_loss(raised, log_result, clip=True)}


@pytest.mark.parametrize("row", ROWS)
def test_rows(batch, row):
    model, twin = Scores(2, 4, 11, 11), Scores(2, 4, 11, 11)
    outcome = stage1_objective(ROWS[row])(model, batch)
    outcome.total.backward()
    expected = by_hand(row, twin, batch)
    sum(expected.values()).backward()
    assert outcome.losses.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(outcome.losses[name], value, 0, name)
    assert_close(model.scores.grad, twin.scores.grad, 1e-7, "gradient of the scores")


ABLATIONS = [
    LossConfig(variant="sec", seed=seed, cues="fixed", constrain=constrain, expand=expand, pooling=pooling)
    for seed, constrain, expand, pooling in (
        ("none", False, True, "weighted_rank"),
        ("seed", False, False, "weighted_rank"),
        ("seed", False, True, "weighted_rank"),
        ("seed", True, False, "weighted_rank"),
        ("seed", True, True, "max"),
        ("seed", True, True, "average"),
    )
]


@pytest.mark.parametrize("config", ABLATIONS, ids=str)
def test_what_the_ablations_of_sec_minimise(batch, config):
    """Each of its three losses is there as in SEC itself, or not at all; the pooling is the expand loss's alone."""
    model = Scores(2, 4, 11, 11)
    whole = stage1_objective(ROWS["SEC"])(model, batch).losses
    objective = stage1_objective(config)
    losses = objective(model, batch).losses
    wanted = {
        "loss-Seed": config.seed == "seed",
        "loss-Expand": config.expand,
        "loss-Constrain": config.constrain,
    }
    assert tuple(losses) == objective.columns == tuple(name for name, used in wanted.items() if used)
    for name, value in losses.items():
        assert (value == whole[name]) == (name != "loss-Expand" or config.pooling == "weighted_rank"), name


@pytest.mark.parametrize(("pooling", "reduce"), [("max", torch.amax), ("average", torch.mean)])
def test_the_ends_of_rank_pooling(batch, pooling, reduce):
    probs = caffe_softmax(Scores(2, 4, 11, 11).scores.detach())
    pooled = reduce(probs.flatten(2), dim=2)
    absent = torch.log(1 - probs[:, [1, 3]].amax(dim=(2, 3))).mean()
    expected = -torch.log(pooled[:, 2]).mean() - absent - torch.log(pooled[:, 0]).mean()
    assert_close(expand_loss(probs, batch["labels"], pooling=pooling), expected, 1e-6, pooling)


def test_the_crf_runs_once_an_iteration_and_only_where_needed(batch, monkeypatch):
    calls = []
    from repro.layers import dense_crf

    original = dense_crf.mean_field
    monkeypatch.setattr(
        dense_crf, "mean_field", lambda *args, **more: calls.append(1) or original(*args, **more)
    )
    stage1_objective(ROWS["+DSRG"])(Scores(2, 4, 11, 11), batch)
    assert len(calls) == 1
    stage1_objective(LossConfig(cues="fixed", constrain=False))(Scores(2, 4, 11, 11), batch)
    assert len(calls) == 1


def test_retraining_ignores_void_and_averages_over_valid_cells():
    model = Scores(1, 5, 3, 3)
    label = torch.full((1, 1, 17, 17), 255.0)
    label[0, 0, 0, 0], label[0, 0, 8, 16] = 2, 4  # cells (0, 0) and (1, 2) of the 3x3 grid
    outcome = stage2_objective(8)(model, {"images": torch.zeros(1, 3, 17, 17), "label": label})
    picked = torch.stack([model.scores[0, :, 0, 0], model.scores[0, :, 1, 2]])
    assert_close(outcome.losses["loss"], F.cross_entropy(picked, torch.tensor([2, 4])), 1e-6, "loss")


def test_a_batch_of_void_costs_nothing():
    model = Scores(1, 5, 3, 3)
    label = torch.full((1, 1, 17, 17), 255.0)
    outcome = stage2_objective(8)(model, {"images": torch.zeros(1, 3, 17, 17), "label": label})
    outcome.total.backward()
    assert outcome.losses["loss"] == 0
    assert not model.scores.grad.any()


@pytest.mark.parametrize("name", ["dsrg_vgg16_voc", "sec_vgg16_voc"])
def test_an_iteration_waits_for_no_value(name, monkeypatch):
    """On the meta device no tensor has a value: whatever would wait for one raises. The code is that of CUDA, up to
    the kernels, whose launches wait for nothing."""
    jit = pytest.importorskip("triton.runtime.jit", reason="Triton is not installed")
    launched = set()
    monkeypatch.setattr(jit.JITFunction, "run", lambda kernel, *_, **__: launched.add(kernel.__name__))
    for module in (mean_field_engine, region_growing):
        monkeypatch.setattr(module, "has_triton", lambda device_type: device_type == "meta")
    config = load_config(name, ["model.width_divisor=16", "stage1.solver.clip_gradients=10"])
    with torch.device("meta"):
        model = build_model(config.model.name, width_divisor=16)
        batch = {
            "images": torch.empty(2, 3, 97, 97),
            "labels": torch.empty(2, 21, dtype=torch.uint8),
            "cues": torch.empty(2, 21, 13, 13, dtype=torch.uint8),
        }
    metrics = update(
        model, CaffeSGD(model, config.stage1.solver), stage1_objective(config.stage1.loss), iter([batch])
    )
    assert {"loss", "loss-Seed", "loss-Constrain"} <= metrics.keys()
    assert ("spread" in launched) == (config.stage1.loss.cues == "grown")
    assert all(value.device.type == "meta" and value.ndim == 0 for value in metrics.values())


def test_an_iteration_of_retraining_waits_for_no_value():
    with torch.device("meta"):
        model = build_model("vgg16_aspp", width_divisor=16)
        batch = {"images": torch.empty(2, 3, 97, 97), "label": torch.empty(2, 1, 97, 97, dtype=torch.uint8)}
    solver = CaffeSGD(model, {"base_lr": 1e-3, "lr_policy": "poly", "power": 0.9, "max_iter": 10})
    metrics = update(model, solver, stage2_objective(8), iter([batch]))
    assert metrics.keys() == {"loss", "accuracy", "accuracy-recall", "accuracy-jaccard"}
