"""Caffe's SGD and rate policies against 12 recorded updates under 11 settings (golden/solver.h5)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from parity_tests.conftest import assert_close
from parity_tests.tolerances import SOLVER
from repro.config import SolverConfig
from repro.errors import InputError
from repro.solver import CaffeSGD, learning_rate

CASES = ("clip", "exp", "fixed", "inv", "itersize", "l1", "multistep", "nomom", "poly", "sigmoid", "step")
TEXT_FIELDS = ("lr_policy", "regularization_type")
INTEGER_FIELDS = ("max_iter", "stepsize", "iter_size")


def solver_fields(group) -> dict:
    fields = {}
    for key, text in json.loads(group.attrs["solver"]).items():
        number = int if key in INTEGER_FIELDS else float
        fields[key] = text if key in TEXT_FIELDS else [int(text)] if key == "stepvalue" else number(text)
    return fields


@pytest.mark.parametrize("case", CASES)
def test_trajectory(golden, case):
    recorded = golden("solver")
    group = recorded[case]
    fields = solver_fields(group)
    layers = {"c1": nn.Conv2d(3, 6, 3, padding=1), "c2": nn.Conv2d(6, 5, 1)}
    parameters = {
        f"{name}/{i}": p for name, conv in layers.items() for i, p in enumerate((conv.weight, conv.bias))
    }
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(group[key][0]))
    solver = CaffeSGD(
        [
            {"params": [layers["c1"].weight], "lr_mult": 1, "decay_mult": 1},
            {"params": [layers["c1"].bias], "lr_mult": 2, "decay_mult": 0},
            {"params": [layers["c2"].weight], "lr_mult": 10, "decay_mult": 1},
            {"params": [layers["c2"].bias], "lr_mult": 20, "decay_mult": 0},
        ],
        fields,
    )
    data, label = (torch.from_numpy(recorded[key][()]) for key in ("data", "label"))
    position = 0
    for iteration in range(12):
        for _ in range(fields.get("iter_size", 1)):
            batch = [(position + k) % len(data) for k in range(2)]
            position += 2
            scores = layers["c2"](F.relu(layers["c1"](data[batch])))
            loss = F.cross_entropy(scores, label[batch][:, 0].long(), ignore_index=255)
            loss.backward()
        assert_close(loss, group["last_minibatch_loss"][iteration], SOLVER, f"loss {iteration}")
        solver.step()
        solver.zero_grad()
        for key, parameter in parameters.items():
            assert_close(parameter, group[key][iteration + 1], SOLVER, f"{key} after update {iteration + 1}")


def test_rates_by_formula():
    step = {"base_lr": 5e-4, "lr_policy": "step", "gamma": 0.1, "stepsize": 2000}
    assert [learning_rate(step, t) for t in (0, 1999, 2000, 6000)] == pytest.approx([5e-4, 5e-4, 5e-5, 5e-7])
    multistep = {"base_lr": 1.0, "lr_policy": "multistep", "gamma": 0.5, "stepvalue": [3, 5]}
    assert [learning_rate(multistep, t) for t in (2, 3, 4, 5)] == [1.0, 0.5, 0.5, 0.25]
    poly = {"base_lr": 1.0, "lr_policy": "poly", "power": 0.9, "max_iter": 10}
    assert learning_rate(poly, 10) == 0.0
    assert learning_rate(poly, 12) == 0.0


def test_a_dict_of_numpys_numbers():
    fields = {"base_lr": np.float64(1), "lr_policy": "multistep", "gamma": np.float32(0.5), "max_iter": 12.0}
    config = SolverConfig.of(fields | {"stepvalue": np.array([3, 5]), "iter_size": np.int64(2)})
    assert config == SolverConfig.of({**fields, "stepvalue": (3, 5), "iter_size": 2})
    assert learning_rate(config, 4) == 0.5
    with pytest.raises(InputError, match=r"max_iter: .*found 12\.5"):
        SolverConfig.of(fields | {"max_iter": 12.5})


def test_history_carries_the_old_rate_after_a_step_down():
    """The difference from torch.optim.SGD that makes re-implementations drift at each drop of the rate."""
    weight = nn.Parameter(torch.zeros(1))
    solver = CaffeSGD(
        [{"params": [weight]}],
        {"base_lr": 1.0, "lr_policy": "step", "gamma": 0.1, "stepsize": 1, "momentum": 0.9},
    )
    for expected in (-1.0, -1.0 - (0.9 + 0.1)):
        weight.grad = torch.ones(1)
        solver.step()
        assert weight.item() == pytest.approx(expected)


@pytest.mark.parametrize(("clip_gradients", "step"), [(-1.0, 4.0), (0.0, 4.0), (2.0, 2.0), (8.0, 4.0)])
def test_clips_above_zero_alone(clip_gradients, step):
    weight = nn.Parameter(torch.zeros(1))
    fields = {"base_lr": 1.0, "lr_policy": "fixed", "clip_gradients": clip_gradients}
    weight.grad = torch.full((1,), 4.0)
    CaffeSGD([{"params": [weight]}], fields).step()
    assert weight.item() == pytest.approx(-step)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_lr": 0.1, "lr_policy": "cosine"}, "solver: lr_policy"),
        (
            {"base_lr": 0.1, "lr_policy": "step", "stepsizes": 3},
            "unknown key 'stepsizes'; did you mean 'stepsize'",
        ),
        ({"base_lr": 0.1, "lr_policy": "step"}, "step needs stepsize"),
        ({"base_lr": 0.1, "lr_policy": "inv", "gamma": -0.1}, "inv needs gamma of at least 0"),
        ({"base_lr": "fast", "lr_policy": "fixed"}, "base_lr: .*found 'fast'"),
        ({"lr_policy": "fixed"}, "base_lr: Field required"),
    ],
)
def test_bad_configuration(fields, message):
    with pytest.raises(InputError, match=message):
        SolverConfig.of(fields)


def test_foreign_history_is_refused():
    solver = CaffeSGD([{"params": [nn.Parameter(torch.zeros(2, 3))]}], {"base_lr": 0.1, "lr_policy": "fixed"})
    with pytest.raises(ValueError, match="2 arrays, the model has 1"):
        solver.load_history([torch.zeros(2, 3)] * 2, 5)
    with pytest.raises(ValueError, match=r"expected shape \(2, 3\), found \(4,\)"):
        solver.load_history([torch.zeros(4)], 5)
    solver.load_history([torch.ones(1, 1, 2, 3)], 5)  # a legacy 4-D shape with the same values
    assert solver.iteration == 5
    assert solver.history[0].shape == (2, 3)
