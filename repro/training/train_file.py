"""Training a net from Caffe's files: its own layers, losses and data layers under the loop of every training.

    train net     every iteration: ``iter_size`` batches, the weighted sum of the losses, one update
    test nets     every ``test_interval`` iterations, at the start (``test_initialization``) and at the end: the means
                  of their outputs over ``test_iter`` batches, with the train net's parameters, in ``test.csv``

The folder is a stage's: ``log.csv`` with every loss and output of the train net, snapshots, markers.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from repro import distributed
from repro.config import Mark, shaping
from repro.data.image_list import read_label_list
from repro.data.release_layers import AnnotationLayer, AnnotationLayerCOCO
from repro.data.sampler import load_made
from repro.errors import InputError
from repro.models.layer_types.python import BalancedSeedLossLayer, SeedLossLayer, SoftmaxLayer
from repro.models.net import CaffeNet
from repro.models.registry import DataLayer
from repro.precision import to_device
from repro.run_folder import Run
from repro.solver import build_solver
from repro.training.caffe_solver import SolverRun
from repro.training.collapse import CollapseWatch
from repro.training.csv_log import CsvLog
from repro.training.hooks import stage_hooks
from repro.training.lengthen import lengthens
from repro.training.loop import Hook, SolverLoop, Sums
from repro.training.measured_filler import fill_by_first_batch
from repro.training.objectives import Batch, NetObjective
from repro.training.seed_quality import SeedQuality
from repro.training.snapshots import snapshots
from repro.training.train import fill_from, labels_sha256, take_over
from weights_conversion.files import check_plain, file_sha256, no_such

log = logging.getLogger(__name__)


def train_file(files: SolverRun, run: Run) -> Path:
    """Train the net of a solver's files in ``<run>/<step>``, resuming from its newest snapshot if there is one.

    Returns:
        The final weights, ``iter_<max_iter>.safetensors``.

    Raises:
        InputError: anything missing or malformed in the inputs; a folder made with other settings.
    """
    config, net = files.config, files.net
    batches = NetBatches(net, config.seed, config.solver.iter_size, config.data.workers)
    _check_files(files)
    with run.step(files.step, _settings(files), partial(lengthens, place=("solver",))) as step:
        if not step.done:
            batches.check()
            for note in files.notes:
                log.info("%s", note)
            missing = fill_from(net, config.init, config.seed, _weights(files))
            tests = [
                CaffeNet(t.net, phase="test", stages=list(t.state.stage), level=t.state.level, path=t.path)
                for t in files.tests
            ]
            for test in tests:
                share_parameters(net, test)
            watches, objective = _objective(files, batches)
            to_device(net, config, run.device)
            for test in tests:
                share_parameters(net, test.to(run.device, config.dtype))
            solver = build_solver(net, config.solver)
            if config.init.filler == "lsuv" and not snapshots(step.folder) and distributed.is_first():
                step.record["filler"] = fill_by_first_batch(net, missing, batches.first)
            if config.init.solverstate:
                take_over(solver, config.init.solverstate)
            if tests:
                watches.append(Tests(tests, files))
            list_path = files.inputs.get("list", config.caffe_solver or "")
            check_plain(list_path)
            list_content = Path(list_path).read_bytes()
            hooks = stage_hooks(step, list_content, watches)
            SolverLoop(net, solver, objective, batches, step.folder, hooks).run()
        return step.folder / f"iter_{config.solver.max_iter}.safetensors"


class NetBatches:
    """What a net's data layers make, batch by batch: each is a function of the seed and its number."""

    def __init__(self, net: CaffeNet, seed: int, iter_size: int = 1, workers: int = 0) -> None:
        self.net, self.seed, self.iter_size, self.workers = net, seed, iter_size, workers
        self.places = net.data_layers
        self.layers: list[DataLayer] = [net[place.name] for place in self.places]  # type: ignore[misc]
        for index, layer in enumerate(self.layers):
            layer.seed = (seed + index * 0x9E3779B97F4A7C15) % 2**64
            if isinstance(layer, AnnotationLayer):
                layer.seed = layer.images.seed
        self.size = max((layer.batch for layer in self.layers), default=1)

    def check(self) -> None:
        """Raise InputError for what is wrong in the layers' lists and files."""
        for layer in self.layers:
            layer.check()
            seeds = any(isinstance(self.net[place.name], SeedLossLayer) for place in self.net.layers)
            if seeds and isinstance(layer, AnnotationLayer) and (image := layer.without_cues()):
                layer.fail(
                    "",
                    f"{image} has no cue cell; SeedLossLayer needs one or more, BalancedSeedLossLayer does not",
                )

    def make(self, number: int) -> Batch:
        """The tops of all data layers, and what else they have."""
        batch: Batch = {}
        for place, layer in zip(self.places, self.layers, strict=True):
            layer.number = number
            tops = layer.make(*(batch[name] for name in place.bottoms))
            batch.update(zip(place.tops, tops, strict=True))
            batch.update(layer.extras)
        return batch

    @property
    def images(self) -> int:
        """Images of an iteration, those of all ranks."""
        return self.size * self.iter_size

    def load(
        self, iteration: int, count: int, *, workers: int | None = None, pin_memory: bool = False
    ) -> Iterator[Batch]:
        """As :class:`repro.training.loop.BatchSource` has it."""
        for layer in self.layers:
            if layer.batch < distributed.size():
                layer.fail(
                    "batch_size",
                    f"{layer.batch}, expected at least one image for each of {distributed.size()} processes",
                )
            layer.share = distributed.share(layer.batch)
        numbers = range(iteration * self.iter_size, (iteration + count) * self.iter_size)
        workers = self.workers if workers is None else workers
        return iter(load_made(self.make, numbers, workers=workers, pin_memory=pin_memory))

    def first(self, weights: torch.Tensor) -> Batch:
        """The blobs of the first batch, for `fill_by_first_batch`."""
        for layer in self.layers:
            layer.share = slice(None)
        return {name: blob.to(weights) for name, blob in self.make(0).items() if name in self.net.shapes}


class Tests(Hook):
    """``test.csv``: what the test nets give. The first process computes it."""

    def __init__(self, nets: list[CaffeNet], files: SolverRun) -> None:
        self.nets, self.counts = nets, [test.batches for test in files.tests]
        self.batches = [NetBatches(net, files.config.seed) for net in nets]
        self.every, self.at_start = files.parameter.test_interval, files.parameter.test_initialization
        self.outputs = [_reported(net) for net in nets]
        columns = ["iteration"]
        for number, (net, names) in enumerate(zip(nets, self.outputs, strict=True)):
            prefix = f"{number}/" if len(nets) > 1 else ""
            for top in names:
                size = torch.Size(net.shapes[top]).numel()
                columns += [f"{prefix}{top}" if size == 1 else f"{prefix}{top}[{i}]" for i in range(size)]
        self.columns = tuple(columns)

    def before_training(self, loop: SolverLoop) -> None:
        iteration = loop.solver.iteration
        if distributed.is_first():
            self._log = CsvLog(loop.folder / "test.csv", self.columns, iteration + 1 if iteration else 0)
            if iteration == 0 and self.at_start:
                self._test(0)

    def after_iteration(self, loop: SolverLoop, sums: Sums) -> None:
        done = loop.solver.iteration
        if distributed.is_first() and (done % self.every == 0 or done == loop.solver.config.max_iter):
            self._test(done)

    @torch.no_grad()
    def _test(self, iteration: int) -> None:
        values: list[float] = []
        for net, batches, count, names in zip(
            self.nets, self.batches, self.counts, self.outputs, strict=True
        ):
            parameter = next(net.parameters(), torch.zeros(()))
            sums = [torch.zeros(net.shapes[name], dtype=torch.float64) for name in names]
            first = -(-iteration // self.every) * count  # each test continues where the last one ended
            for number in range(first, first + count):
                batch = {
                    name: blob.to(parameter)
                    for name, blob in batches.make(number).items()
                    if name in net.shapes
                }
                for total, value in zip(sums, net.forward_some(batch, *names), strict=True):
                    total += value.cpu().double().reshape(total.shape) / count
            values += [number for total in sums for number in total.flatten().tolist()]
        self._log.write(dict(zip(self.columns, [iteration, *values], strict=True)))


def _reported(net: CaffeNet) -> list[str]:
    """The outputs that are numbers: not what a data layer makes and nobody reads."""
    made = {top for layer in net.data_layers for top in layer.tops}
    return [b for b in net.outputs if b not in made and torch.Size(net.shapes[b]).numel() <= 64]


def share_parameters(net: CaffeNet, test: CaffeNet) -> None:
    """Give ``test`` the parameters of ``net``, by layer name (``Net::ShareTrainedLayersWith``)."""
    for layer in test.layers:
        module = test[layer.name]
        if layer.name not in net.params:
            continue
        for (kind, own), theirs in zip(module.caffe_blobs().items(), net.params[layer.name], strict=True):
            if own.shape != theirs.shape:
                module.fail("", f"its {kind} is {tuple(own.shape)}, the train net's {tuple(theirs.shape)}")
            module._parameters[kind] = theirs


def _check_files(files: SolverRun) -> None:
    """Raise InputError for a path that the run's settings name and that is not there."""
    for key, path in files.inputs.items():
        # a root without a slash at its end may be the beginning of the names
        if not Path(path).exists() and (path.endswith("/") or not key.endswith("_root")):
            raise InputError(
                f"{files.net.path}: data.{key}: no such file or folder: {path}; give data.{key}=PATH"
            )
    for path in [*_weights(files), files.config.init.solverstate or ""]:
        if path and not Path(path).is_file():
            raise InputError(f"{files.config.caffe_solver}: init: {no_such('file', path)}")


def _weights(files: SolverRun) -> list[str]:
    given = files.config.init.weights or ""
    return [given] if Path(given).is_file() else [path for path in given.split(",") if path]


def _objective(files: SolverRun, batches: NetBatches) -> tuple[list[Hook], NetObjective]:
    """What is minimised, and what watches it."""
    net, config = files.net, files.config
    watches: list[Hook] = []
    kinds = [net[layer.name] for layer in net.layers]
    softmax = next((m for m in kinds if isinstance(m, SoftmaxLayer)), None)
    if softmax is not None:
        terms = 2 if any(isinstance(m, BalancedSeedLossLayer) for m in kinds) else 1
        terms = terms if any(isinstance(m, (SeedLossLayer, BalancedSeedLossLayer)) for m in kinds) else 0
        watches.append(CollapseWatch(softmax.shapes[0][1], terms))
    if config.data.truth_root is None:
        return watches, NetObjective(net)
    images = [
        len(layer.images.lines) if isinstance(layer, AnnotationLayer) else len(layer.dataset)
        for layer in batches.layers
        if isinstance(layer, (AnnotationLayer, AnnotationLayerCOCO))
    ]
    quality = SeedQuality(images[0], batches.size * config.solver.iter_size)
    return [*watches, quality], NetObjective(net, quality.watch)


def _settings(files: SolverRun) -> dict[str, Any]:
    """The settings that decide the weights; files count by the hashes of their contents."""
    config = files.config
    hashes = {key: file_sha256(path) for key, path in files.inputs.items() if Path(path).is_file()}
    root = files.inputs.get("label_root") or (files.inputs.get("image_root") if files.stage == 2 else None)
    if root and files.stage == 2 and Path(files.inputs.get("list", "")).is_file():
        hashes["labels"] = labels_sha256(root, read_label_list(files.inputs["list"]))
    hashes |= {f"weights {i}": file_sha256(path) for i, path in enumerate(_weights(files))}
    if config.init.solverstate:
        hashes["solverstate"] = file_sha256(config.init.solverstate)
    return {
        "seed": config.seed,
        "precision": config.precision,
        "net": hashlib.sha256(files.written).hexdigest(),
        "solver": shaping(config.solver),
        "init": shaping(config.init, Mark.INPUT, Mark.EXTRA_INPUT),
        "data": shaping(config.data, Mark.INPUT, Mark.EXTRA_INPUT),
        "inputs_sha256": hashes,
    }
