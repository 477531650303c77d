"""A net beside a recording of Caffe's blobs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import h5py
import numpy as np
import torch
from torch import nn

from repro.constants import TOLERANCE
from repro.errors import InputError
from repro.models.net import CaffeNet
from repro.models.net_state import filtered
from repro.parity.comparison import BlobComparison, BlobStep, Comparison, Difference, compare_blob, steps
from repro.parity.recording import Recording, read_recording
from weights_conversion.caffe_pb2 import NetParameter
from weights_conversion.lift import lift
from weights_conversion.prototxt import parse_prototxt
from weights_conversion.upgrade import upgraded

Blobs: TypeAlias = Mapping[str, torch.Tensor | np.ndarray]
Net: TypeAlias = CaffeNet | Blobs | Callable[[dict[str, torch.Tensor]], Blobs]
Source: TypeAlias = str | os.PathLike[str] | h5py.Group | Recording


def first_difference(
    net: Net, recording: Source, *, tolerance: float = TOLERANCE, partial: bool = False
) -> Difference | None:
    """The first blob, in the net's order, that differs from Caffe's, or None where all are equal.

    Args:
        net: a ``CaffeNet``, which runs on the recorded inputs in the recorded phase; or a port of your own: its blobs
            by Caffe's names, or a function from the recorded inputs, by name, to them (see :func:`outputs_of`).
        recording: a file that ``tools/record_blobs.py`` wrote, an open HDF5 group of that layout, or a `Recording`.
        tolerance: the largest difference that counts as equal, as a share of the blob's largest recorded value.
        partial: compare the blobs that both sides have. Otherwise a blob that one side lacks is a difference.

    Shapes that differ and NaN are differences. A blob that in-place layers change is compared as the last of them
    leaves it. Where the recording has gradients, those of a ``CaffeNet`` are compared, too, behind the blobs and from
    the last layer to the first. In phase TRAIN its BatchNorm layers move their averages.

    Raises:
        InputError: a recording that cannot be read, lacks an input, or has no blob in common with the net.

    >>> recorded = Recording(blobs={"fc": np.array([[1.0, 2.0]], np.float32)})
    >>> first_difference({"fc": torch.tensor([[1.0, 2.0]])}, recorded) is None
    True
    >>> print(first_difference({"fc": torch.tensor([[1.0, 2.5]])}, recorded))
    first difference: layer ? (?), blob fc: at (0, 1) 2.5, expected 2; the largest difference is 0.5, 0.25 of the \
largest value, 1e-05 allowed
    """
    return compare(net, recording, tolerance=tolerance, partial=partial).first


def compare(
    net: Net, recording: Source, *, tolerance: float = TOLERANCE, partial: bool = False
) -> Comparison:
    """All blobs beside the recording's; arguments and errors as for `first_difference`."""
    recorded = recording if isinstance(recording, Recording) else read_recording(recording)
    blobs: Blobs
    gradients: list[Gradient] = []
    if isinstance(net, CaffeNet):
        order = steps(
            net.inputs, ((layer.name, layer.type, layer.writes, layer.copies) for layer in net.layers)
        )
        blobs, gradients = _run(net, recorded)
    else:
        order = _recorded_order(recorded)
        inputs = {name: torch.from_numpy(values) for name, values in recorded.inputs.items()}
        blobs = net if isinstance(net, Mapping) else net(inputs)
        if not isinstance(blobs, Mapping):
            raise InputError(f"the net gave a {type(blobs).__name__}, expected its blobs by Caffe's names")
    known = {step.blob for step in order}
    order += [
        BlobStep("?", "?", name, optional="_split_" in name) for name in recorded.blobs if name not in known
    ]
    rows = []
    for step in order:
        place = (step.layer, step.type, step.blob)
        ours, theirs = blobs.get(step.blob), recorded.blobs.get(step.blob)
        if ours is not None and theirs is not None:
            rows.append(compare_blob(*place, ours, theirs, tolerance, step.in_place))
        elif not (partial or step.optional):
            rows.append(BlobComparison(*place, note=_absence(ours is None, theirs is None), differs=True))
    if not any(row.shape is not None for row in rows):
        raise InputError(
            f"{recorded.path}: none of its blobs ({', '.join([*recorded.blobs][:5])}) is in the net"
        )
    for layer, type_, what, values, wanted in gradients:
        rows.append(compare_blob(layer, type_, what, values, wanted, tolerance))
    return Comparison(rows, tolerance, f"those of {recorded.path}")


def _absence(ours: bool, theirs: bool) -> str:
    if ours and theirs:
        return "neither the net nor the recording has this blob"
    return "the net has no such blob" if ours else "the recording has no such blob"


def outputs_of(
    module: nn.Module, names: Mapping[str, str]
) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """A function for `first_difference` that gives the outputs of a module's sub-modules under Caffe's blob names.

    Args:
        module: any PyTorch net; it is called with the recorded inputs, in the order of their names in the recording.
        names: blob name -> name of the sub-module that gives it. Where Caffe's ReLU is in-place, that is the ReLU.

    Raises:
        InputError: a name that the module has not.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    >>> [*outputs_of(net, {"conv1": "1"})({"data": torch.zeros(1, 3, 2, 2)})]
    ['conv1']
    """
    known = dict(module.named_modules())
    for blob, name in names.items():
        if name not in known:
            raise InputError(f"blob {blob!r}: the module has no sub-module {name!r}")

    def run(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        blobs: dict[str, torch.Tensor] = {}

        def keep(blob: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
            return lambda _module, _inputs, output: blobs.__setitem__(blob, output.detach().clone())

        handles = [known[name].register_forward_hook(keep(blob)) for blob, name in names.items()]
        try:
            with torch.no_grad():
                module(*inputs.values())
        finally:
            for handle in handles:
                handle.remove()
        return blobs

    return run


Gradient = tuple[str, str, str, torch.Tensor, np.ndarray]


def _run(net: CaffeNet, recorded: Recording) -> tuple[dict[str, torch.Tensor], list[Gradient]]:
    """The net's blobs on the recorded inputs, and its gradients beside the recorded ones."""
    given = dict(recorded.inputs)
    if len(net.inputs) == 1 and len(given) == 1:
        given = dict(zip(net.inputs, given.values(), strict=True))
    data = [
        top for layer in net.layers if not layer.bottoms and layer.type != "Parameter" for top in layer.tops
    ]
    for name in (*net.inputs, *data):  # a data layer's blobs are the recorded ones
        if name not in given and name in recorded.blobs:
            given[name] = recorded.blobs[name]
    first = next(net.parameters(), None)
    device = "cpu" if first is None else first.device
    inputs = {name: torch.from_numpy(values).to(device) for name, values in given.items()}
    wants_gradients = bool(recorded.param_diff or recorded.input_diff)
    training = net.training
    net.train(recorded.phase == "TRAIN")
    try:
        with torch.set_grad_enabled(wants_gradients):
            for blob in inputs.values():
                blob.requires_grad_(wants_gradients)
            blobs = blobs_of(net, inputs, recorded.path)
    finally:
        net.train(training)
    return blobs, list(_gradients(net, recorded, inputs, blobs)) if wants_gradients else []


def blobs_of(net: CaffeNet, inputs: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """The net's blobs; inputs ``where`` it cannot take them are an `InputError`."""
    try:
        return net.forward_blobs(inputs)
    except InputError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{where}: the net cannot run on these inputs: {reason}") from error


def _gradients(
    net: CaffeNet, recorded: Recording, inputs: dict[str, torch.Tensor], blobs: dict[str, torch.Tensor]
) -> Iterator[Gradient]:
    """From the last layer to the first, then of the inputs. Where no gradient arrives it is 0, as in Caffe."""
    device = next(iter(blobs.values())).device
    terms = [
        (blobs[name] * torch.from_numpy(diff).to(device)).sum() for name, diff in recorded.top_diff.items()
    ]
    if any(weight for layer in net.layers for weight in layer.loss_weights):
        terms.append(net.total_loss(blobs))
    objective = torch.stack(terms).sum() if terms else torch.zeros(())
    wanted: list[tuple[str, str, str, torch.Tensor | None, np.ndarray]] = []
    for layer in reversed(net.layers):
        parameters = net.params.get(layer.name, [])
        for index, parameter in enumerate(parameters):
            if (values := recorded.param_diff.get(f"{layer.name}/{index}")) is not None:
                wanted.append((layer.name, layer.type, f"gradient of parameter {index}", parameter, values))
    for name, values in recorded.input_diff.items():
        wanted.append(("input", "Input", f"gradient of {name}", inputs.get(name), values))
    leaves = {id(leaf): leaf for *_, leaf, _ in wanted if leaf is not None and leaf.requires_grad}
    by_leaf: dict[int, torch.Tensor | None] = {}
    if leaves and objective.requires_grad:
        found = torch.autograd.grad(objective, [*leaves.values()], allow_unused=True)
        by_leaf = dict(zip(leaves, found, strict=True))
    for layer_name, type_, what, leaf, values in wanted:
        gradient = by_leaf.get(id(leaf))
        if gradient is None:
            gradient = torch.zeros(()) if leaf is None else torch.zeros_like(leaf)
        yield layer_name, type_, what, gradient, values


def _recorded_order(recorded: Recording) -> list[BlobStep]:
    """The order of the recorded net's blobs, from its prototxt; none without one."""
    if not recorded.prototxt:
        return []
    message = parse_prototxt(recorded.prototxt, f"{recorded.path}: prototxt")
    parameter = upgraded(lift(message, NetParameter, recorded.path, unknown=[]), recorded.path)
    parameter = filtered(parameter, "train" if recorded.phase == "TRAIN" else "test")
    return steps(parameter.input, ((layer.name, layer.type, layer.top, ()) for layer in parameter.layer))
