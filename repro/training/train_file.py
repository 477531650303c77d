"""``repro train --solver`` for any net: the file's own net on its own data layers, under Caffe's solver.

    train net     every iteration: ``iter_size`` batches, the weighted sum of the losses, one update
    test nets     every ``test_interval`` iterations, at the start (``test_initialization``) and at the end: the means
                  of their outputs over ``test_iter`` batches, with the train net's parameters

The folder gets ``log.csv`` (iteration, lr, loss and every output of the train net), ``test.csv`` and snapshots as every
stage's. A run that was cut off goes on from its newest snapshot; its data layers first pass over what they gave.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from repro.config import SolverConfig, validated
from repro.errors import InputError
from repro.files import lock_folder, make_folder
from repro.models.net import CaffeNet, PhaseName, read_net
from repro.models.registry import DataLayer
from repro.solver import CaffeSolver, build_solver
from repro.training.caffe_solver import located, solver_fields
from repro.training.csv_log import CsvLog
from repro.training.snapshots import resume, snapshots, write_snapshot
from weights_conversion import load_weights, read_prototxt
from weights_conversion.caffe_pb2 import NetParameter, SolverParameter
from weights_conversion.lift import lift
from weights_conversion.prototxt import Message

log = logging.getLogger(__name__)
_TRAIN = ("train_net_param", "train_net", "net_param", "net")
_PATHS = {  # fields of data layers that name files
    "image_data_param": ("source", "root_folder"),
    "hdf5_data_param": ("source",),
    "transform_param": ("mean_file",),
    "infogain_loss_param": ("source",),
}


@dataclass(frozen=True)
class _TestNet:
    net: CaffeNet
    batches: int


class FileTraining:
    """A solver prototxt and the nets that it names, built and ready to run.

    Args:
        path: of the solver.
        variables: what ``${NAME}`` in its files stands for.
        weights: fills the layers that it has, before the first iteration.

    Raises:
        InputError: a file, layer or setting that is not supported, by layer and field.
    """

    def __init__(
        self, path: str, *, variables: Mapping[str, str] | None = None, weights: str | None = None
    ) -> None:
        self.path, self.variables = path, dict(variables or {})
        message = read_prototxt(path, self.variables)
        self.parameter = lift(message, SolverParameter, path)
        self.config = validated(SolverConfig, solver_fields(message, path), path)
        if self.config.max_iter < 1:
            raise InputError(f"{path}: max_iter: expected at least 1 iteration")
        if self.parameter.snapshot_diff:
            raise InputError(f"{path}: snapshot_diff: not supported")
        torch.manual_seed(max(self.parameter.random_seed, 0))  # -1, Caffe's default, is the clock
        self.net = self._train_net(message)
        files = (
            [weights] if weights else [located(file, Path(path).parent) for file in self.parameter.weights]
        )
        for file in files:
            report = load_weights(self.net, file)
            log.info("%s", report)
            if not report.loaded:
                raise InputError(
                    f"{file}: none of its layers is in {self.net.name or path}; it holds {report.unused}"
                )
        self.tests = self._test_nets(message)

    def _net(self, given: Any, phase: PhaseName, state: Any) -> CaffeNet:
        """A net of the solver's, a message or the path of one."""
        where = self.path
        if isinstance(given, Message):
            parameter = read_net(given, where)
        else:
            where = located(str(given), Path(self.path).parent)
            try:
                parameter = read_net(read_prototxt(where, self.variables), where)
            except InputError as error:
                raise InputError(f"{self.path}: {error}") from None
        self._locate(parameter)
        return CaffeNet(parameter, phase=phase, stages=list(state.stage), level=state.level, path=where)

    def _locate(self, net: NetParameter) -> None:
        """Paths are Caffe's, from the working directory; where nothing is there, beside the solver."""
        for layer in net.layer:
            for message, fields in _PATHS.items():
                for field in fields:
                    if getattr(layer, message).HasField(field):
                        part = getattr(layer, message)
                        setattr(part, field, located(getattr(part, field), Path(self.path).parent))

    def _train_net(self, message: Message) -> CaffeNet:
        given = [name for name in _TRAIN if name in message]
        if len(given) != 1:
            raise InputError(
                f"{self.path}: names {len(given)} train nets ({', '.join(given) or 'none'}), expected one of net, "
                "train_net"
            )
        net = self._net(message[given[0]][0], "train", self.parameter.train_state)
        if net.inputs:
            raise InputError(
                f"{net.path or self.path}: input {', '.join(net.inputs)}: no data layer makes it; a net that trains "
                "reads its own data"
            )
        if not any(any(layer.loss_weights) for layer in net.layers):
            raise InputError(f"{net.path or self.path}: no layer has a loss_weight: nothing to minimise")
        if not any(parameter.requires_grad for parameter in net.parameters()):
            raise InputError(f"{net.path or self.path}: no parameter learns (lr_mult): nothing to train")
        return net

    def _test_nets(self, message: Message) -> list[_TestNet]:
        p = self.parameter
        given = [*message.get("test_net_param", []), *message.get("test_net", [])]
        named = bool(given)
        shared = [message[name][0] for name in ("net_param", "net") if name in message]
        given += shared[:1] * (
            len(p.test_iter) - len(given) if shared and len(p.test_iter) > len(given) else 0
        )
        if named and len(given) != len(p.test_iter):
            raise InputError(f"{self.path}: test_iter: {len(p.test_iter)} values for {len(given)} test nets")
        if len(p.test_iter) != len(given):
            raise InputError(f"{self.path}: test_iter: given, but there is no test net")
        if given and p.test_interval < 1:
            raise InputError(f"{self.path}: test_interval: expected 1 or more beside test_iter")
        if len(p.test_state) not in (0, len(given)):
            raise InputError(f"{self.path}: test_state: {len(p.test_state)} given for {len(given)} test nets")
        states = list(p.test_state) or [SolverParameter().train_state] * len(given)
        tests = []
        for net_given, state, batches in zip(given, states, p.test_iter, strict=True):
            net = self._net(net_given, "test", state)
            _share(self.net, net)
            tests.append(_TestNet(net, batches))
        return tests

    def run(self, folder: Path, device: torch.device) -> Path:
        """Train in ``folder``; returns the final weights."""
        make_folder(folder)
        lock_folder(folder)
        net, config = self.net.to(device), self.config
        for test in self.tests:
            _share(net, test.net)
        solver = build_solver(net, config)
        if snapshots(folder):
            resume(folder, net, solver)
            data = [net[layer.name] for layer in net.layers if isinstance(net[layer.name], DataLayer)]
            for _ in range(solver.iteration * config.iter_size):
                for layer in data:
                    layer()
        started = solver.iteration
        logged = [(top, index) for top in _reported(net) for index in range(_count(net, top))]
        columns = ("iteration", "lr", "loss", *(_column(net, top, index) for top, index in logged))
        with contextlib.ExitStack() as stack:
            rows = stack.enter_context(CsvLog(folder / "log.csv", columns, started))
            tested = self._test_log(folder, started, stack)
            while solver.iteration < config.max_iter:
                done = solver.iteration
                if (
                    tested
                    and done % self.parameter.test_interval == 0
                    and (done or self.parameter.test_initialization)
                ):
                    self._test(tested, done)
                rate, values = solver.rate, self._step(solver)
                if config.display and done % config.display == 0:
                    numbers = [values[top].flatten()[index].item() for top, index in logged]
                    rows.write(dict(zip(columns, [done, rate, values["loss"].item(), *numbers], strict=True)))
                if config.snapshot and solver.iteration % config.snapshot == 0:
                    write_snapshot(folder, net, solver, {})
            if tested and started < config.max_iter:
                self._test(tested, config.max_iter)
        if config.max_iter not in snapshots(folder):
            write_snapshot(folder, net, solver, {})
        return folder / f"iter_{config.max_iter}.safetensors"

    def _step(self, solver: CaffeSolver) -> dict[str, torch.Tensor]:
        """One iteration; the loss and the outputs, means over its batches. The loss has no other name of its own."""
        net, size = self.net, self.config.iter_size
        names = list(dict.fromkeys([*_losses(net), *_reported(net)]))
        sums: dict[str, torch.Tensor] = {}
        solver.zero_grad()
        for _ in range(size):
            blobs = dict(zip(names, net.forward_some(None, *names), strict=True))
            total = net.total_loss(blobs)
            if not torch.isfinite(total):
                raise InputError(
                    f"{self.path}: iteration {solver.iteration}: the loss is {total.item()}; try a lower base_lr"
                )
            total.backward()
            for name, value in {**blobs, "loss": total}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / size
        solver.step()
        return sums

    def _test_log(self, folder: Path, started: int, stack: contextlib.ExitStack) -> CsvLog | None:
        if not self.tests:
            return None
        columns = ["iteration"]
        for number, test in enumerate(self.tests):
            prefix = f"{number}/" if len(self.tests) > 1 else ""
            columns += [
                f"{prefix}{_column(test.net, top, index)}"
                for top in _reported(test.net)
                for index in range(_count(test.net, top))
            ]
        return stack.enter_context(CsvLog(folder / "test.csv", tuple(columns), started))

    @torch.no_grad()
    def _test(self, rows: CsvLog, iteration: int) -> None:
        values: list[float] = []
        for test in self.tests:
            names = _reported(test.net)
            sums = [torch.zeros(test.net.shapes[name], dtype=torch.float64) for name in names]
            for _ in range(test.batches):
                for total, value in zip(sums, test.net.forward_some(None, *names), strict=True):
                    total += value.cpu().double().reshape(total.shape) / test.batches
            values += [number for total in sums for number in total.flatten().tolist()]
        rows.write(dict(zip(rows.columns, [iteration, *values], strict=True)))


def _share(net: CaffeNet, test: CaffeNet) -> None:
    """Give ``test`` the parameters of ``net``, by layer name (``Net::ShareTrainedLayersWith``)."""
    for layer in test.layers:
        module = test[layer.name]
        if layer.name not in net.params:
            continue
        for (kind, own), theirs in zip(module.caffe_blobs().items(), net.params[layer.name], strict=True):
            if own.shape != theirs.shape:
                module.fail("", f"its {kind} is {tuple(own.shape)}, the train net's {tuple(theirs.shape)}")
            module._parameters[kind] = theirs


def _losses(net: CaffeNet) -> list[str]:
    pairs = (pair for layer in net.layers for pair in zip(layer.tops, layer.loss_weights, strict=True))
    return [top for top, weight in pairs if weight]


def _reported(net: CaffeNet) -> list[str]:
    """The outputs that are numbers: not what a data layer makes and nobody reads."""
    made = {top for layer in net.layers if isinstance(net[layer.name], DataLayer) for top in layer.tops}
    return [blob for blob in net.outputs if blob not in made and _count(net, blob) <= 64]


def _count(net: CaffeNet, blob: str) -> int:
    return torch.Size(net.shapes[blob]).numel()


def _column(net: CaffeNet, top: str, index: int) -> str:
    """The column of an output; the loss of a single layer named loss is beside the weighted sum of all."""
    name = f"{top} (top)" if top in ("loss", "lr", "iteration") else top
    return name if _count(net, top) == 1 else f"{name}[{index}]"


def uses_release_data(path: str, variables: Mapping[str, str]) -> bool:
    """Whether a solver's train net reads the releases' own Python data layers, which our data layers stand for."""
    text = Path(path)
    message = read_prototxt(text, variables)
    given = next((message[name][0] for name in _TRAIN if name in message), None)
    if isinstance(given, str):
        where = located(given, text.parent)
        given = read_prototxt(where, variables) if Path(where).is_file() else None
    layers: Sequence[Message] = given.layers if isinstance(given, Message) else []
    names = {
        str(python.get("layer", [""])[0])
        for layer in layers
        for python in layer.get("python_param", [])
        if isinstance(python, Message)
    }
    return not names.isdisjoint(("AnnotationLayer", "AnnotationLayerCOCO", "ImageSegDataLayer"))
