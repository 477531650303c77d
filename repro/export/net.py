"""A net of any prototxt in another form: ONNX, or a plain PyTorch module; each is run beside the net before it gets
its name."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repro.data.images import read_image_bgr, subtract_mean
from repro.errors import InputError, line_of
from repro.layers.resize import resize_bilinear_u8
from repro.models import CaffeNet
from repro.models.source import net_source
from weights_conversion import LoadReport, save_safetensors
from weights_conversion.files import atomic_path

BOUND = 1e-4  # the largest difference relative to an output's largest value; deep nets in float32 reach 1e-5

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class OutputDifference:
    """How far an output is from the net's, relative to its largest value, for inputs of these shapes."""

    output: str
    inputs: str
    relative: float


def check_inputs(net: CaffeNet, image: Path | None = None) -> list[Arrays]:
    """What a check runs on: noise in the shapes as built, and larger where the net takes that; or an image.

    Noise is normal, of deviation 1: what is larger drives a softmax or a sigmoid to where nothing shows.

    Raises:
        InputError: an image for a net whose input is none.
    """
    if image is not None:
        return [_read(net, image)]
    batch, size = net.free_sizes()
    shapes = [net.shapes]
    if batch or size:
        shapes.append(net.shapes_with(batch=int(batch), side=32 * int(size)) or net.shapes)
    rng = np.random.default_rng(0)
    return [{name: rng.standard_normal(each[name], np.float32) for name in net.inputs} for each in shapes]


def _read(net: CaffeNet, path: Path) -> Arrays:
    (name, shape), *others = net.inputs.items()
    if others or len(shape) != 4 or shape[1] != 3:
        raise InputError(
            f"{path}: the net's inputs are no image ({', '.join(map(str, net.inputs.values()))})"
        )
    picture = read_image_bgr(path)
    if not net.free_sizes()[1]:
        picture = resize_bilinear_u8(picture, *shape[2:])
    image = subtract_mean(picture)[None]
    return {name: image if net.free_sizes()[0] else np.repeat(image, shape[0], axis=0)}


def compare(
    net: CaffeNet, run: Callable[[Arrays], Sequence[np.ndarray]], inputs: Sequence[Arrays], where: str
) -> list[OutputDifference]:
    """Run both on the same inputs.

    Args:
        run: gives the net's outputs, in the order of ``net.outputs``.
        where: the file that ``run`` runs, for the message.

    Raises:
        InputError: an output that differs by more than ``BOUND``, or that is not finite in the net itself.
    """
    training, found = net.training, []
    net.eval()
    try:
        for arrays in inputs:
            with torch.inference_mode():
                wanted = net.forward_some({n: torch.from_numpy(a) for n, a in arrays.items()}, *net.outputs)
            shapes = ", ".join("x".join(map(str, array.shape)) for array in arrays.values())
            for name, want, got in zip(net.outputs, wanted, run(arrays), strict=True):
                found.append(OutputDifference(name, shapes, _relative(want.numpy(), got, name, where)))
    finally:
        net.train(training)
    return found


def _relative(want: np.ndarray, got: np.ndarray, name: str, where: str) -> float:
    if not np.isfinite(want).all():
        raise InputError(
            f"{where}: cannot be checked: output {name!r} of the net itself is not finite; are the weights its own?"
        )
    if want.shape != got.shape:
        raise InputError(f"{where}: output {name!r} has the shape {got.shape}, the net's {want.shape}")
    largest = max(float(np.abs(want).max(initial=0)), 1e-30)
    relative = float(np.abs(got - want).max(initial=0)) / largest
    if not relative <= BOUND:
        raise InputError(
            f"{where}: output {name!r} differs from the net's by {relative:.1e} of its largest value, "
            f"at most {BOUND:g} expected; nothing is written"
        )
    return relative


def write_onnx(
    net: CaffeNet,
    path: Path,
    *,
    weights: str | os.PathLike[str] | None = None,
    inputs: Sequence[Arrays] | None = None,
) -> list[OutputDifference]:
    """Write ``net`` as an ONNX file that onnxruntime runs as PyTorch does; ``inputs`` as of ``check_inputs``.

    Raises:
        InputError: a layer without a form in ONNX, or what ``compare`` refuses; nothing is written then.
    """
    from repro.export.onnx import export_onnx  # onnx and onnxruntime are extras
    from repro.export.runtime import open_session

    found: list[OutputDifference] = []

    def verify(temporary: Path) -> dict[str, str]:
        session = open_session(temporary)

        def run(arrays: Arrays) -> list[np.ndarray]:
            try:
                return [np.asarray(result) for result in session.run(None, arrays)]
            except Exception as error:  # onnxruntime's exceptions have no common base of their own
                raise InputError(f"{path}: onnxruntime: {line_of(error)}") from error

        found.extend(compare(net, run, inputs or check_inputs(net), str(path)))
        return {}

    export_onnx(net, path, graph="net", weights=weights, verify=verify)
    return found


class _Loader(SourceFileLoader):
    def set_data(self, *_: Any, **__: Any) -> None:
        """No bytecode is left in the user's folder."""


def write_module(
    net: CaffeNet, path: Path, *, inputs: Sequence[Arrays] | None = None
) -> tuple[Path, list[OutputDifference]]:
    """Write ``net`` as a Python file that needs PyTorch and safetensors alone, and its weights beside it.

    Returns the path of the weights, and the differences from the net, in whose place the file was run.

    Raises:
        InputError: a layer without a form in plain PyTorch, or what ``compare`` refuses; nothing is written then.
    """
    weights = path.with_suffix(".safetensors")
    text = net_source(net, weights.name)
    with atomic_path(path) as temporary, atomic_path(weights) as temporary_weights:
        temporary.write_text(text, encoding="utf-8")
        save_safetensors(net, temporary_weights)
        # our own functions and numbers: names from the prototxt stand in comments and quoted
        written = types.ModuleType(path.stem)
        _Loader(path.stem, str(temporary)).exec_module(written)
        module = written.load(temporary_weights)

        def run(arrays: Arrays) -> list[np.ndarray]:
            with torch.inference_mode():
                result = module(*(torch.from_numpy(arrays[name]) for name in net.inputs))
            outputs: Mapping[str, torch.Tensor] = (
                result if isinstance(result, dict) else {net.outputs[0]: result}
            )
            return [outputs[name].numpy() for name in net.outputs]

        found = compare(net, run, inputs or check_inputs(net), str(path))
    return weights, found


def write_net(
    net: CaffeNet, target: Path, weights: Path, loaded: LoadReport, image: Path | None = None
) -> tuple[list[Path], list[str]]:
    """Write a net as the ending of ``target`` says, ``.onnx`` or ``.py``.

    Returns the files written, and the lines that say how the net was checked.

    Raises:
        InputError: weights that lack a layer, or what the two writers refuse.
    """
    if loaded.missing:
        raise InputError(f"{weights}: has no weights for {', '.join(loaded.missing)}, which {target} needs")
    inputs = check_inputs(net, image)
    if target.suffix == ".onnx":
        return [target], report(net, write_onnx(net, target, weights=weights, inputs=inputs))
    beside, found = write_module(net, target, inputs=inputs)
    return [beside, target], report(net, found)


def report(net: CaffeNet, differences: Sequence[OutputDifference]) -> list[str]:
    """What is open of the inputs' sizes, and a line an output with its differences."""
    batch, size = net.free_sizes()
    open_ = " and ".join([*["batch"] * batch, *["height and width"] * size]) or "nothing"
    lines = [
        f"inputs {', '.join(f'{name} {_text(shape)}' for name, shape in net.inputs.items())}; free: {open_}"
    ]
    for output in net.outputs:
        figures = ", ".join(f"{d.relative:.1e} for {d.inputs}" for d in differences if d.output == output)
        lines.append(f"output {output}: largest difference from PyTorch, of its largest value: {figures}")
    return lines


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
