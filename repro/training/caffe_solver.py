"""A Caffe solver prototxt as the configuration of a run: ``repro train --solver``.

The solver's fields become :class:`repro.config.SolverConfig`'s, its seed and its weights the run's. The net that it
names is trained as it is (:mod:`repro.training.train_file`); settings under ``data`` replace what its data layers say.
A field that would change a number and is not supported is refused; one that has no effect here is logged.

Paths are Caffe's, from the working directory; where nothing is there, beside the solver file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.config import FileConfig, FileData, SolverConfig, file_config, validated
from repro.errors import InputError
from repro.models.net import CaffeNet, read_net
from repro.models.net_state import filtered
from repro.models.registry import DataLayer, describe, layer_class
from weights_conversion import Message, read_prototxt
from weights_conversion.caffe_pb2 import LayerParameter, NetParameter, SolverParameter
from weights_conversion.lift import lift
from weights_conversion.upgrade import upgraded

_FLOATS = {
    *("base_lr", "gamma", "power", "momentum", "momentum2", "rms_decay", "delta"),
    *("weight_decay", "clip_gradients"),
}
_TYPES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")  # by their numbers in solver_type
_TAKEN = _FLOATS | {
    *("lr_policy", "stepsize", "stepvalue", "max_iter", "iter_size", "regularization_type"),
    *("average_loss", "snapshot"),
}
_TRAIN = ("train_net", "net", "train_net_param", "net_param")
_USED = _TAKEN | {
    *(*_TRAIN, "test_net", "test_net_param", "test_iter", "test_interval", "test_initialization"),
    *("train_state", "test_state", "random_seed", "type", "solver_type", "weights"),
}
_NO_USE = {  # of fields that the original has a use for and a run here has not
    "display": "log.csv has every iteration; solver.display=N thins it out",
    "snapshot_prefix": "a run writes to its folder, output=DIR",
    "snapshot_format": "snapshots are safetensors, repro convert makes Caffe's files of them",
    "snapshot_after_train": "the last iteration is always kept",
    "solver_mode": "device=… decides",
    "device_id": "device=… decides",
    "debug_info": "repro check shows every blob",
    "layer_wise_reduce": "of no effect here",
    "test_compute_loss": "test.csv has every output of the test net",
}
_PATHS = ("image_root", "label_root", "list", "cues", "truth_root")  # of our keys: what names files
# of other layers and messages
_OTHER_PATHS = {"transform_param": "mean_file", "infogain_loss_param": "source"}


@dataclass(frozen=True)
class TestNet:
    """A net of the phase TEST and how many of its batches make a test."""

    net: NetParameter
    state: Any
    batches: int
    path: str


@dataclass(frozen=True)
class SolverRun:
    """What a solver's files ask for: a configuration, its nets, and what is to be said, by lines."""

    config: FileConfig
    net: CaffeNet
    tests: list[TestNet]
    parameter: SolverParameter
    inputs: dict[str, str]  # files and folders that the train net's data layers read, by our key
    written: bytes  # the train net as the file has it
    notes: list[str]

    @property
    def stage(self) -> int | None:
        """1 or 2 where its data layers are those of the papers' stages."""
        names = {type(self.net[layer.name]).__name__ for layer in self.net.data_layers}
        if names & {"AnnotationLayer", "AnnotationLayerCOCO"}:
            return 1
        return 2 if "ImageSegDataLayer" in names else None

    @property
    def step(self) -> str:
        """The name of its folder in the run's."""
        return f"stage{self.stage}" if self.stage else "train"


def load_solver(
    path: str,
    overrides: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    fields: dict[str, Any] | None = None,
) -> SolverRun:
    """Read a solver prototxt and its nets; ``key=value`` overrides come last.

    Args:
        path: of the solver.
        overrides: keys of :class:`repro.config.FileConfig`.
        variables: what ``${NAME}`` in the files stands for.
        fields: of the configuration of an earlier run, instead of those that the solver says.

    Raises:
        InputError: a file that cannot be read; a layer, field or setting that is not supported, by name.
    """
    variables = dict(variables or {})
    message = read_prototxt(path, variables)
    solver = solver_fields(message, path)
    seed = _number(message, "random_seed", path, -1)
    parameter = lift(message, SolverParameter, path)
    validated(SolverConfig, solver, path)  # here, where an error names the solver's file
    notes = []
    for name in message:
        if name not in _USED | _NO_USE.keys():
            raise InputError(f"{path}: {name}: not supported")
        if name in _NO_USE:
            notes.append(f"{path}: {name}: {_NO_USE[name]}")
    if fields is None:
        name = re.sub(r"[^A-Za-z0-9._+-]+", "-", Path(path).stem).lstrip("-._+") or "solver"
        fields = {
            "name": name,
            "seed": max(int(seed), 0),
            "caffe_solver": path,
            "set": variables,
            "solver": solver,
        }
        if parameter.weights:
            fields["init"] = {
                "weights": ",".join(located(file, Path(path).parent) for file in parameter.weights)
            }
    config = file_config(fields, overrides, path)
    if config.solver.max_iter < 1:
        raise InputError(f"{path}: max_iter: expected at least 1 iteration")
    reader = _Reader(path, variables, parameter)
    net, inputs, written = reader.train_net(message, config.data)
    return SolverRun(config, net, reader.test_nets(message), parameter, inputs, written, notes)


def load_run(fields: dict[str, Any], overrides: Sequence[str], where: str) -> SolverRun | None:
    """The run of a net from Caffe's files whose ``config.yaml`` has these fields; None for those of another profile."""
    solver, variables = fields.get("caffe_solver"), fields.get("set", {})
    if solver is None:
        return None
    validated(FileConfig, fields, where)
    return load_solver(solver, overrides, variables, fields)


def _one(message: Message, name: str, where: str, default: Any = None) -> Any:
    try:
        return message.one(name, default)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def _number(message: Message, name: str, where: str, default: float) -> float:
    value = _one(message, name, where, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{where}: {name}: expected a number, found {value!r}")
    return value


def solver_fields(solver: Message, path: str) -> dict[str, Any]:
    """The fields of a solver prototxt that :class:`SolverConfig` has."""
    fields: dict[str, Any] = {"type": _solver_type(solver, path)}
    for name in _TAKEN & solver.keys():
        if name == "stepvalue":
            fields[name] = list(solver[name])
            continue
        value = _one(solver, name, path)
        whole = isinstance(value, int) and not isinstance(value, bool)
        fields[name] = float(value) if name in _FLOATS and whole else value
        if isinstance(value, str):
            fields[name] = str(value)
    return fields


def _solver_type(solver: Message, path: str) -> str:
    """``type``, or what ``solver_type``, its old form, is upgraded to (``UpgradeSolverType``)."""
    if "solver_type" not in solver:
        return str(_one(solver, "type", path, "SGD"))
    if "type" in solver:
        raise InputError(f"{path}: has type and solver_type, its old form; expected one of them")
    old = _one(solver, "solver_type", path)
    for number, kind in enumerate(_TYPES):
        if old in (number, kind.upper()):
            return kind
    names = ", ".join(kind.upper() for kind in _TYPES)
    raise InputError(f"{path}: solver_type: expected one of {names}, found {old!r}")


def located(path: str, beside: Path) -> str:
    """A path as Caffe takes it, from the working directory; or beside the solver, where that has it."""
    return str(beside / path) if not Path(path).exists() and (beside / path).exists() else path


class _Reader:
    """The nets of a solver."""

    def __init__(self, path: str, variables: dict[str, str], parameter: SolverParameter) -> None:
        self.path, self.variables, self.parameter = path, variables, parameter
        self.beside = Path(path).parent

    def _read(self, given: Any) -> tuple[NetParameter, str]:
        """A net of the solver's, a message or the path of one, and where it stands."""
        if isinstance(given, Message):
            return upgraded(read_net(given, self.path), self.path), self.path
        where = located(str(given), self.beside)
        try:
            message = read_prototxt(where, self.variables)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None
        return upgraded(read_net(message, where), where), where

    def train_net(self, message: Message, data: FileData) -> tuple[CaffeNet, dict[str, str], bytes]:
        """The net, built; the files that its data layers read; and the net as it is written."""
        given = [name for name in _TRAIN if name in message]
        if len(given) != 1:
            raise InputError(
                f"{self.path}: names {len(given)} train nets ({', '.join(given) or 'none'}), expected one of net, "
                "train_net"
            )
        parameter, where = self._read(_one(message, given[0], self.path))
        state = self.parameter.train_state
        parameter = filtered(parameter, "train", stages=list(state.stage), level=state.level)
        written = parameter.SerializeToString(deterministic=True)
        try:
            self._change(parameter, data)
            inputs = self._locate(parameter)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        net = CaffeNet(parameter, phase="train", stages=list(state.stage), level=state.level, path=where)
        if net.inputs:
            raise InputError(
                f"{where}: input {', '.join(net.inputs)}: no data layer makes it; a net that trains reads its own data"
            )
        if not any(any(layer.loss_weights) for layer in net.layers):
            raise InputError(f"{where}: no layer has a loss_weight: nothing to minimise")
        if not any(blob.requires_grad for blob in net.parameters()):
            raise InputError(f"{where}: no parameter learns (lr_mult): nothing to train")
        return net, inputs, written

    def test_nets(self, message: Message) -> list[TestNet]:
        """Those of ``test_net``, or the phase TEST of ``net``, one a ``test_iter``."""
        p = self.parameter
        given = [*message.get("test_net_param", []), *message.get("test_net", [])]
        named = bool(given)
        shared = [message[name][0] for name in ("net_param", "net") if name in message]
        given += shared[:1] * max(len(p.test_iter) - len(given), 0)
        if named and len(given) != len(p.test_iter):
            raise InputError(f"{self.path}: test_iter: {len(p.test_iter)} values for {len(given)} test nets")
        if len(p.test_iter) != len(given):
            raise InputError(f"{self.path}: test_iter: given, but there is no test net")
        if given and p.test_interval < 1:
            raise InputError(f"{self.path}: test_interval: expected 1 or more beside test_iter")
        if any(batches < 1 for batches in p.test_iter):
            raise InputError(f"{self.path}: test_iter: expected 1 or more")
        if len(p.test_state) not in (0, len(given)):
            raise InputError(f"{self.path}: test_state: {len(p.test_state)} given for {len(given)} test nets")
        states = list(p.test_state) or [SolverParameter().train_state] * len(given)
        tests = []
        for net, state, batches in zip(given, states, p.test_iter, strict=True):
            parameter, where = self._read(net)
            self._locate(filtered(parameter, "test", stages=list(state.stage), level=state.level), parameter)
            tests.append(TestNet(parameter, state, batches, where))
        return tests

    def _locate(self, net: NetParameter, whole: NetParameter | None = None) -> dict[str, str]:
        """Make its paths those that are there, in ``whole`` too; gives what its data layers read, by our key."""
        found: dict[str, str] = {}
        for layer in [*net.layer, *(whole.layer if whole else ())]:
            for message, field in _OTHER_PATHS.items():
                part = getattr(layer, message)
                if layer.HasField(message) and part.HasField(field):
                    setattr(part, field, located(getattr(part, field), self.beside))
            kind = _data_class(layer)
            for key in _PATHS:
                if (
                    kind is not None
                    and key in kind.keys
                    and isinstance(path := kind.setting(layer, key), str)
                ):
                    if path and key != "truth_root":
                        found[key] = located(path, self.beside)
                    kind.change(layer, key, located(path, self.beside))
        return found

    def _change(self, net: NetParameter, data: FileData) -> None:
        """Put our settings in the place of what the data layers say.

        A ``Data`` layer, whose database is not read, becomes ImageData where there is a list.
        """
        given = {key: value for key, value in data if value is not None and key != "workers"}
        taken = set()
        for layer in net.layer:
            if layer.type == "Data" and data.list is not None:
                layer.type = "ImageData"
                layer.image_data_param.batch_size = layer.data_param.batch_size
                layer.ClearField("data_param")
            kind = _data_class(layer)
            for key in given:
                if kind is not None and key in kind.keys:
                    kind.change(layer, key, given[key])
                    taken.add(key)
        for key in given:
            if key not in taken:
                raise InputError(f"data.{key}: no data layer of this net has such a setting")


def _data_class(layer: LayerParameter) -> type[DataLayer] | None:
    try:
        kind = layer_class(layer)
    except InputError:  # told where the net is built
        return None
    if not issubclass(kind, DataLayer):
        return None
    if kind.field == "" and not layer.HasField("python_param"):
        raise InputError(f"{describe(layer)}: python_param: missing")
    return kind
