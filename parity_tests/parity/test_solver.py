"""Caffe's six solvers and its rate policies against 12 recorded updates under 11 settings of SGD (golden/solver.h5)
and 8 of the others (golden/solver_types.h5); snapshots of each."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from parity_tests.conftest import assert_close
from parity_tests.tolerances import SOLVER
from repro.config import SolverConfig, load_config
from repro.errors import InputError
from repro.models import build_model
from repro.run.forecast import training
from repro.run.machines import Machine
from repro.solver import CaffeSGD, build_solver, learning_rate
from repro.training.snapshots import write_snapshot
from weights_conversion import convert_solverstate, read_solverstate, write_solverstate

CASES = [
    *(
        ("solver", case)
        for case in (
            *(
                "clip",
                "exp",
                "fixed",
                "inv",
                "itersize",
                "l1",
                "multistep",
                "nomom",
                "poly",
                "sigmoid",
                "step",
            ),
        )
    ),
    *(
        ("solver_types", case)
        for case in (
            *("adadelta", "adagrad", "adam", "adam_l1", "legacy_enum_adagrad"),
            *("nesterov", "nesterov_clip_iter", "rmsprop"),
        )
    ),
]
TEXT_FIELDS = ("type", "lr_policy", "regularization_type")
INTEGER_FIELDS = ("max_iter", "stepsize", "iter_size")
TYPES = {  # fields of each type that are not Caffe's defaults
    "SGD": {"momentum": 0.9},
    "Nesterov": {"momentum": 0.9},
    "AdaGrad": {},
    "RMSProp": {"rms_decay": 0.9},
    "AdaDelta": {"momentum": 0.95, "delta": 1e-6},
    "Adam": {"momentum": 0.9},
}
ADAM = {"type": "Adam", "base_lr": 0.1, "lr_policy": "fixed"}
MULTIPLIERS = {"c1/0": (1, 1), "c1/1": (2, 0), "c2/0": (10, 1), "c2/1": (20, 0)}


def solver_fields(group) -> dict:
    text = group.attrs["solver"]
    if text.startswith("{"):
        written = json.loads(text)
    else:
        written = {name: value.strip('"') for name, value in re.findall(r"(\w+): (\S+)", text)}
    fields = {}
    if written.pop("solver_type", None) == "ADAGRAD":
        fields["type"] = "AdaGrad"
    for key in written.keys() & SolverConfig.model_fields.keys() - {"snapshot"}:
        value, number = written[key], int if key in INTEGER_FIELDS else float
        fields[key] = value if key in TEXT_FIELDS else [int(value)] if key == "stepvalue" else number(value)
    return fields


class Toy:
    """The recorded net and its solver: ``update`` does the iteration at hand."""

    def __init__(self, recorded, weights, fields: dict) -> None:
        self.layers = {"c1": nn.Conv2d(3, 6, 3, padding=1), "c2": nn.Conv2d(6, 5, 1)}
        self.parameters = {
            f"{name}/{i}": p
            for name, conv in self.layers.items()
            for i, p in enumerate((conv.weight, conv.bias))
        }
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(torch.as_tensor(weights[key]))
        groups = [
            {"params": [parameter], "lr_mult": MULTIPLIERS[key][0], "decay_mult": MULTIPLIERS[key][1]}
            for key, parameter in self.parameters.items()
        ]
        self.solver = build_solver(groups, fields)
        self.data, self.label = (torch.from_numpy(recorded[key][()]) for key in ("data", "label"))

    def update(self) -> torch.Tensor:
        """Returns the loss of the last mini-batch."""
        iter_size = self.solver.config.iter_size
        for position in range(self.solver.iteration * iter_size, (self.solver.iteration + 1) * iter_size):
            batch = [(2 * position + k) % len(self.data) for k in range(2)]
            scores = self.layers["c2"](F.relu(self.layers["c1"](self.data[batch])))
            loss = F.cross_entropy(scores, self.label[batch][:, 0].long(), ignore_index=255)
            loss.backward()
        self.solver.step()
        self.solver.zero_grad()
        return loss

    def weights(self) -> dict[str, np.ndarray]:
        return {key: parameter.detach().numpy().copy() for key, parameter in self.parameters.items()}


@pytest.mark.parametrize(("recording", "case"), CASES)
def test_trajectory(golden, recording, case):
    recorded = golden(recording)
    group = recorded[case]
    toy = Toy(recorded, {key: group[key][0] for key in MULTIPLIERS}, solver_fields(group))
    for iteration in range(12):
        assert_close(toy.update(), group["last_minibatch_loss"][iteration], SOLVER, f"loss {iteration}")
        for key, parameter in toy.parameters.items():
            assert_close(parameter, group[key][iteration + 1], SOLVER, f"{key} after update {iteration + 1}")


@pytest.mark.parametrize("ending", [".state_dict", ".solverstate", ".solverstate.h5"])
@pytest.mark.parametrize("kind", TYPES)
def test_going_over_in_the_middle(golden, tmp_path, kind, ending):
    """Six updates, the state into a file and out of it, six more: equal to twelve."""
    recorded = golden("solver_types")
    fields = {"type": kind, "base_lr": 0.01, "lr_policy": "step", "gamma": 0.1, "stepsize": 8, **TYPES[kind]}
    fields |= {"weight_decay": 0.05, "clip_gradients": 0.5}
    whole = Toy(recorded, {key: recorded["adam"][key][0] for key in MULTIPLIERS}, fields)
    for _ in range(6):
        whole.update()
    resumed, path = Toy(recorded, whole.weights(), fields), tmp_path / f"toy{ending}"
    if ending == ".state_dict":
        torch.save(whole.solver.state_dict(), path)
        resumed.solver.load_state_dict(torch.load(path, weights_only=True))
    else:
        write_solverstate(path, 6, 0, [array.numpy() for array in whole.solver.history])
        state = read_solverstate(path)
        resumed.solver.load_history(state.history, state.iter)
    assert resumed.solver.iteration == 6
    for _ in range(6):
        whole.update()
        resumed.update()
    for key, weights in whole.weights().items():
        assert np.array_equal(resumed.weights()[key], weights), key


@pytest.mark.parametrize("kind", TYPES)
def test_history_is_in_caffes_order(kind):
    """One gradient of 3 and of 2, at a rate of 1: what Caffe's ``history_`` holds of it, blob by blob."""
    fields = {"base_lr": 1.0, "lr_policy": "fixed", "type": kind, "delta": 1e-2}
    if kind not in ("AdaGrad", "RMSProp"):
        fields["momentum"] = 0.75
    first, second = (nn.Parameter(torch.zeros(shape)) for shape in (2, (3, 1)))
    solver = build_solver([{"params": [first]}, {"params": [second], "lr_mult": 10}], fields)
    first.grad, second.grad = torch.full((2,), 3.0), torch.full((3, 1), 2.0)
    solver.step()
    update = [0.25 * g**2 * 0.01 / (0.25 * g**2 + 0.01) for g in (3, 2)]
    want = {
        "SGD": [3, 20],
        "Nesterov": [3, 20],
        "AdaGrad": [9, 4],
        "RMSProp": [0.09, 0.04],
        "AdaDelta": [2.25, 1, *update],
        "Adam": [0.75, 0.5, 0.009, 0.004],
    }[kind]
    assert [float(array.flatten()[0]) for array in solver.history] == pytest.approx(want, rel=1e-4)
    shapes = [tuple(array.shape) for array in solver.history]
    assert shapes == [(2,), (3, 1)] * (len(want) // 2)


@pytest.mark.parametrize("kind", ["Nesterov", "AdaDelta", "Adam"])
@pytest.mark.parametrize("ending", [".solverstate", ".solverstate.h5"])
def test_a_snapshot_becomes_caffes(tmp_path, kind, ending):
    """A snapshot of training, by ``repro convert``, back into a solver: the same history, the same next step."""
    nets = [build_model("vgg16_largefov", num_classes=2, width_divisor=64) for _ in range(2)]
    fields = {"type": kind, "base_lr": 0.1, "lr_policy": "step", "gamma": 0.5, "stepsize": 2, "momentum": 0.9}
    solvers = [build_solver(net, fields) for net in nets]
    for _ in range(3):
        for parameter in nets[0].parameters():
            parameter.grad = torch.sin(torch.arange(parameter.numel())).reshape(parameter.shape)
        solvers[0].step()
    write_snapshot(tmp_path, nets[0], solvers[0], {})
    target = tmp_path / f"x{ending}"
    convert_solverstate(tmp_path / "iter_3.state", target, nets[1])
    state = read_solverstate(target)
    assert (state.iter, state.current_step) == (3, 1)
    assert len(state.history) == len(solvers[0].history)
    solvers[1].load_history(state.history, state.iter)
    for net, solver in zip(nets, solvers, strict=True):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        solver.step()
    for (name, left), right in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(left, right), name


def test_a_forecast_counts_both_histories(tmp_path):
    sizes = {}
    for kind in ("SGD", "Adam"):
        fields = [f"stage1.solver.type={kind}", "stage1.solver.max_iter=1", "stage1.solver.snapshot=1"]
        planned = SimpleNamespace(config=load_config("mini", fields), folder=tmp_path)
        machine = Machine("any", cuda=False, flops=1e12)
        sizes[kind] = training(planned, "stage1", machine).size - 100  # its line of the log
    assert sizes["Adam"] == 1.5 * sizes["SGD"] > 0


@pytest.mark.parametrize("kind", TYPES)
def test_lr_is_the_rate_of_the_next_step(kind):
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))
    fields = {"type": kind, "base_lr": 0.5, "lr_policy": "step", "gamma": 0.1, "stepsize": 2, **TYPES[kind]}
    solver = build_solver([{"params": [first]}, {"params": [second], "lr_mult": 10}], fields)
    for iteration in range(5):
        rate = learning_rate(fields, iteration)
        assert [group["lr"] for group in solver.param_groups] == pytest.approx([rate, 10 * rate])
        state = solver.state_dict()
        solver.step()
    solver.load_state_dict(state)
    assert solver.param_groups[1]["lr"] == pytest.approx(10 * rate)
    solver.load_history(solver.history, 0)
    assert [group["lr"] for group in solver.param_groups] == [0.5, 5.0]


def test_rates_by_formula():
    step = {"base_lr": 5e-4, "lr_policy": "step", "gamma": 0.1, "stepsize": 2000}
    assert [learning_rate(step, t) for t in (0, 1999, 2000, 6000)] == pytest.approx([5e-4, 5e-4, 5e-5, 5e-7])
    multistep = {"base_lr": 1.0, "lr_policy": "multistep", "gamma": 0.5, "stepvalue": [3, 5]}
    assert [learning_rate(multistep, t) for t in (2, 3, 4, 5)] == [1.0, 0.5, 0.5, 0.25]
    twice = multistep | {"stepvalue": [3, 3, 4, 9]}  # Caffe makes one step an iteration
    assert [learning_rate(twice, t) for t in range(2, 10)] == [1, 0.5, 0.25, *[0.125] * 4, 0.0625]
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


def test_the_rate_overflows_as_caffes_does():
    """The rate is there from the end of the step before, also where no step follows."""
    poly = {"base_lr": 1.0, "lr_policy": "poly", "power": -1.0, "max_iter": 2}
    assert [learning_rate(poly, t) for t in (0, 1, 2)] == [1.0, 2.0, math.inf]
    assert learning_rate({"base_lr": 1.0, "lr_policy": "exp", "gamma": 10.0}, 400) == math.inf


def test_adams_correction_is_in_the_rate():
    """delta is added to the root that is not corrected: for a small gradient not PyTorch's update."""
    weight = nn.Parameter(torch.zeros(1))
    fields = {"base_lr": 1.0, "lr_policy": "fixed", "momentum": 0.9, "delta": 1e-3, "type": "Adam"}
    weight.grad = torch.full((1,), 0.01)
    build_solver([{"params": [weight]}], fields).step()
    root = 0.001**0.5
    assert weight.item() == pytest.approx(-(root / 0.1) * 0.1 * 0.01 / (root * 0.01 + 1e-3), rel=1e-4)


def test_averages_decay_by_float32s():
    """Caffe's 1 - 0.999 is 0.00099998713, which no float32 nearer to 0.001 is taken for."""
    weight = nn.Parameter(torch.zeros(1))
    solver = build_solver([{"params": [weight]}], ADAM)
    weight.grad = torch.ones(1)
    solver.step()
    assert solver.history[1].item() == np.float32(1) - np.float32(0.999) != np.float32(0.001)


def test_adadeltas_rate_is_outside_its_averages():
    """A tenth of the rate, a tenth of every update: what it remembers of updates is without the rate."""
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    fields = {"lr_policy": "fixed", "momentum": 0.9, "type": "AdaDelta"}
    for weight, base_lr in zip(weights, (1.0, 0.1), strict=True):
        solver = build_solver([{"params": [weight]}], {**fields, "base_lr": base_lr})
        for gradient in (1.0, 2.0, -0.5):
            weight.grad = torch.full((1,), gradient)
            solver.step()
    assert weights[1].item() == pytest.approx(0.1 * weights[0].item())


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
        ({"base_lr": 0.1, "lr_policy": "fixed", "type": "adam"}, "type: .* found 'adam'"),
        (
            {"base_lr": 0.1, "lr_policy": "fixed", "type": "AdaGrad", "momentum": 0.9},
            "AdaGrad has no momentum",
        ),
        (
            {"base_lr": 0.1, "lr_policy": "fixed", "type": "RMSProp", "momentum": 0.1},
            "RMSProp has no momentum",
        ),
        (
            {"base_lr": 0.1, "lr_policy": "fixed", "type": "RMSProp", "rms_decay": 1.0},
            "rms_decay: .* found 1",
        ),
        (
            {"base_lr": 0.1, "lr_policy": "fixed", "type": "RMSProp", "rms_decay": -0.1},
            "rms_decay: .*found -0.1",
        ),
        ({"base_lr": 0.1, "lr_policy": "fixed", "type": "Adam", "momentum2": 1}, "momentum2: .* found 1"),
        ({"base_lr": 0.1, "lr_policy": "fixed", "type": "Adam", "momentum": 1 - 1e-9}, "is 1 in float32"),
        ({"base_lr": 0.1, "lr_policy": "fixed", "type": "AdaDelta", "delta": 0}, "AdaDelta divides by delta"),
        (
            {"base_lr": 0.1, "lr_policy": "fixed", "type": "AdaGrad", "delta": 1e-50},
            "AdaGrad divides by delta",
        ),
        ({"base_lr": 0.1, "lr_policy": "fixed", "delta": -1e-8}, "delta: .* found -1e-08"),
        ({"base_lr": "fast", "lr_policy": "fixed"}, "base_lr: .*found 'fast'"),
        ({"lr_policy": "fixed"}, "base_lr: Field required"),
    ],
)
def test_bad_configuration(fields, message):
    with pytest.raises(InputError, match=message):
        SolverConfig.of(fields)


def test_a_solver_of_another_type_is_refused():
    with pytest.raises(InputError, match="type Adam: expected SGD for CaffeSGD"):
        CaffeSGD([{"params": [nn.Parameter(torch.zeros(1))]}], ADAM)


def test_foreign_history_is_refused():
    adam = build_solver([{"params": [nn.Parameter(torch.zeros(2, 3))]}], ADAM)
    with pytest.raises(ValueError, match="1 arrays, the model has 1 parameters, Adam keeps 2 of each"):
        adam.load_history([torch.zeros(2, 3)], 5)
    solver = CaffeSGD([{"params": [nn.Parameter(torch.zeros(2, 3))]}], {"base_lr": 0.1, "lr_policy": "fixed"})
    with pytest.raises(ValueError, match="2 arrays, the model has 1"):
        solver.load_history([torch.zeros(2, 3)] * 2, 5)
    with pytest.raises(ValueError, match=r"expected shape \(2, 3\), found \(4,\)"):
        solver.load_history([torch.zeros(4)], 5)
    solver.load_history([torch.ones(1, 1, 2, 3)], 5)  # a legacy 4-D shape with the same values
    assert solver.iteration == 5
    assert solver.history[0].shape == (2, 3)
