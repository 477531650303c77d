"""Caffe's rules for the shapes of a layer's tops and parameters, given those of its bottoms: one function a type."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from repro.layers.sizes import convolved_size, interpolated_size, pooled_size
from weights_conversion.caffemodel import V1_TYPES
from weights_conversion.prototxt import Identifier, Message

Shape: TypeAlias = tuple[int, ...]


class MisfitError(ValueError):
    """The layer does not fit its bottoms or its own fields."""


class UnknownShapeError(Exception):
    """The shape cannot be told from the prototxt."""


@dataclass(frozen=True)
class Result:
    tops: Sequence[Shape | None]
    blobs: Sequence[Shape] = ()


# --- fields


def layer_type(layer: Message) -> str:
    """The type, of a V1 layer (``INNER_PRODUCT``) under its current name."""
    written = layer.get("type", [""])[-1]
    if isinstance(written, Identifier):
        plain = written.replace("_", "").lower().replace("softmaxloss", "softmaxwithloss")
        return next((name for name in V1_TYPES.values() if name.lower() == plain), written)
    return str(written)


def names(message: Message, field: str) -> tuple[str, ...]:
    return tuple(str(value) for value in message.get(field, []))


def text(message: Message, field: str) -> str:
    return str(message.get(field, [""])[-1])


def _param(layer: Message, name: str) -> Message:
    value = layer.get(name, [Message()])[-1]
    if not isinstance(value, Message):
        raise MisfitError(f"{name} is no message")
    return value


def integers(message: Message, field: str) -> list[int]:
    values = message.get(field, [])
    if wrong := [value for value in values if type(value) is not int]:
        raise MisfitError(f"{field} {wrong[0]!r} is no whole number")
    return [int(value) for value in values]  # type: ignore[arg-type]


def _integer(message: Message, field: str, default: int) -> int:
    return (integers(message, field) or [default])[-1]


def _flag(message: Message, field: str, default: bool) -> bool:
    return bool(message.get(field, [default])[-1])


def _spatial(message: Message, field: str, default: int, axes: int, *others: str) -> list[int]:
    """A field that holds one number for all spatial axes, or one for each, or is ``<name>_h`` and ``<name>_w``."""
    stem = field.removesuffix("_size")
    if f"{stem}_h" in message or f"{stem}_w" in message:
        if axes != 2:
            raise MisfitError(f"{stem}_h and {stem}_w for {axes} axes")
        return [_integer(message, f"{stem}_{axis}", default) for axis in "hw"]
    values = integers(message, field) or next((v for o in others if (v := integers(message, o))), [default])
    if len(values) not in (1, axes):
        raise MisfitError(f"{len(values)} values of {field} for {axes} axes")
    return values * axes if len(values) == 1 else values


def shape_dims(shape: Any) -> Shape:
    return tuple(integers(shape, "dim")) if isinstance(shape, Message) else ()


# --- rules: layer and the shapes of its bottoms -> the shapes of its tops and blobs


def _axes(bottoms: Sequence[Shape], count: int = 1) -> Shape:
    """The first bottom's shape, which has at least ``count`` axes."""
    if not bottoms or len(bottoms[0]) < count:
        raise MisfitError(f"expected a bottom of {count} axes or more")
    return bottoms[0]


def _canonical(axis: int, shape: Shape) -> int:
    if not -len(shape) <= axis < len(shape):
        raise MisfitError(f"no axis {axis} in a blob of {len(shape)} axes")
    return axis % len(shape)


def _same(layer: Message, bottoms: Sequence[Shape]) -> Result:
    return Result([_axes(bottoms, 0)] * len(names(layer, "top")))


def _convolution(layer: Message, bottoms: Sequence[Shape]) -> Result:
    param, deconvolves = _param(layer, "convolution_param"), layer_type(layer) == "Deconvolution"
    shape = _axes(bottoms, 3)
    channels, *sizes = shape[1:]
    kernel = _spatial(param, "kernel_size", 0, len(sizes))
    stride = _spatial(param, "stride", 1, len(sizes))
    pad = _spatial(param, "pad", 0, len(sizes))
    dilation = _spatial(param, "dilation", 1, len(sizes), "hole")  # DeepLab-v1's name for it
    outputs, group = _integer(param, "num_output", 0), _integer(param, "group", 1)
    if min(stride) < 1 or group < 1 or channels % group or outputs % group:
        raise MisfitError(f"stride {stride}, group {group} with {channels} channels in, {outputs} out")
    spatial = []
    for size, k, s, p, d in zip(sizes, kernel, stride, pad, dilation, strict=True):
        spatial.append(
            s * (size - 1) + d * (k - 1) + 1 - 2 * p if deconvolves else convolved_size(size, k, s, p, d)
        )
    weight = (channels, outputs // group) if deconvolves else (outputs, channels // group)
    blobs: list[Shape] = [(*weight, *kernel)]
    if _flag(param, "bias_term", True):
        blobs.append((outputs,))
    return Result([(shape[0], outputs, *spatial)] * len(bottoms), blobs)


def _pooling(layer: Message, bottoms: Sequence[Shape]) -> Result:
    param = _param(layer, "pooling_param")
    number, channels, *sizes = _axes(bottoms, 4)
    if _flag(param, "global_pooling", False):
        spatial = [1 for _ in sizes]
    else:
        kernel = _spatial(param, "kernel_size", 0, 2)
        stride, pad = _spatial(param, "stride", 1, 2), _spatial(param, "pad", 0, 2)
        if min(kernel) < 1 or min(stride) < 1:
            raise MisfitError(f"kernel {kernel}, stride {stride}")
        floor = str(param.get("round_mode", ["CEIL"])[-1]) == "FLOOR"
        size_of = convolved_size if floor else pooled_size
        spatial = [size_of(n, k, s, p) for n, k, s, p in zip(sizes, kernel, stride, pad, strict=True)]
    return Result([(number, channels, *spatial)] * len(names(layer, "top")))


def _inner_product(layer: Message, bottoms: Sequence[Shape]) -> Result:
    param = _param(layer, "inner_product_param")
    shape = _axes(bottoms)
    axis = _canonical(_integer(param, "axis", 1), shape)
    outputs, inputs = _integer(param, "num_output", 0), math.prod(shape[axis:])
    weight = (inputs, outputs) if _flag(param, "transpose", False) else (outputs, inputs)
    bias = [(outputs,)] if _flag(param, "bias_term", True) else []
    return Result([(*shape[:axis], outputs)], [weight, *bias])


def _batch_norm(layer: Message, bottoms: Sequence[Shape]) -> Result:
    channels = bottoms[0][1] if bottoms and len(bottoms[0]) > 1 else 1
    return Result([_axes(bottoms)], [(channels,), (channels,), (1,)])


def _scale(layer: Message, bottoms: Sequence[Shape]) -> Result:
    param = _param(layer, "scale_param")
    shape = _axes(bottoms)
    if len(bottoms) > 1:
        return Result([shape])
    axis, axes = _canonical(_integer(param, "axis", 1), shape), _integer(param, "num_axes", 1)
    blob = shape[axis:] if axes < 0 else shape[axis : axis + axes]
    return Result([shape], [blob, blob] if _flag(param, "bias_term", False) else [blob])


def _prelu(layer: Message, bottoms: Sequence[Shape]) -> Result:
    shape = _axes(bottoms, 2)
    shared = _flag(_param(layer, "prelu_param"), "channel_shared", False)
    return Result([shape], [() if shared else (shape[1],)])


def _eltwise(layer: Message, bottoms: Sequence[Shape]) -> Result:
    if len(set(bottoms)) != 1:
        raise MisfitError(f"bottoms of {' and '.join(map(str, bottoms))}")
    return Result([bottoms[0]])


def _concat(layer: Message, bottoms: Sequence[Shape]) -> Result:
    param = _param(layer, "concat_param")
    first = _axes(bottoms)
    axis = _canonical(_integer(param, "axis", _integer(param, "concat_dim", 1)), first)
    rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in bottoms if len(shape) == len(first)}
    if len(rests) != 1 or any(len(shape) != len(first) for shape in bottoms):
        raise MisfitError(f"bottoms of {' and '.join(map(str, bottoms))} on axis {axis}")
    return Result([(*first[:axis], sum(shape[axis] for shape in bottoms), *first[axis + 1 :])])


def _slice(layer: Message, bottoms: Sequence[Shape]) -> Result:
    param = _param(layer, "slice_param")
    shape, count = _axes(bottoms), len(names(layer, "top"))
    axis = _canonical(_integer(param, "axis", _integer(param, "slice_dim", 1)), shape)
    points = integers(param, "slice_point")
    if not points:
        if not count or shape[axis] % count:
            raise MisfitError(f"{shape[axis]} on axis {axis} in {count} equal parts")
        points = [shape[axis] // count * part for part in range(1, count)]
    if len(points) != count - 1:
        raise MisfitError(f"{len(points)} slice points for {count} tops")
    bounds = [0, *points, shape[axis]]
    sizes = [stop - start for start, stop in itertools.pairwise(bounds)]
    return Result([(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes])


def _flatten(layer: Message, bottoms: Sequence[Shape]) -> Result:
    param, shape = _param(layer, "flatten_param"), _axes(bottoms)
    axis = _canonical(_integer(param, "axis", 1), shape)
    end = _canonical(_integer(param, "end_axis", -1), shape)
    return Result([(*shape[:axis], math.prod(shape[axis : end + 1]), *shape[end + 1 :])])


def _reshape(layer: Message, bottoms: Sequence[Shape]) -> Result:
    shape = _axes(bottoms)
    param = _param(layer, "reshape_param")
    dims = list(shape_dims(param.get("shape", [Message()])[-1]))
    if (
        "axis" in param
        or "num_axes" in param
        or dims.count(-1) > 1
        or len(dims) > len(shape) + dims.count(1) + 8
    ):
        raise UnknownShapeError("reshape of some axes")
    sizes = [shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(dims)]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        if rest < 1 or math.prod(shape) % rest:
            raise MisfitError(f"{shape} as {dims}")
        sizes[sizes.index(-1)] = math.prod(shape) // rest
    if math.prod(sizes) != math.prod(shape):
        raise MisfitError(f"{shape} as {dims}")
    return Result([tuple(sizes)])


def _crop(layer: Message, bottoms: Sequence[Shape]) -> Result:
    if len(bottoms) != 2 or len(bottoms[0]) != len(bottoms[1]):
        raise MisfitError("expected two bottoms of as many axes")
    axis = _canonical(_integer(_param(layer, "crop_param"), "axis", 2), bottoms[0])
    return Result([(*bottoms[0][:axis], *bottoms[1][axis:])])


def _interp(layer: Message, bottoms: Sequence[Shape]) -> Result:
    param = _param(layer, "interp_param")
    number, channels, *sizes = _axes(bottoms, 4)
    pads = _integer(param, "pad_beg", 0) + _integer(param, "pad_end", 0)
    shrink, zoom = _integer(param, "shrink_factor", 1), _integer(param, "zoom_factor", 1)
    if shrink < 1 or zoom < 1:
        raise MisfitError(f"shrink_factor {shrink}, zoom_factor {zoom}")
    if len(bottoms) > 1:  # the size of a second bottom
        spatial = list(bottoms[1][2:])
    elif "height" in param:
        spatial = [_integer(param, "height", 0), _integer(param, "width", 0)]
    else:
        spatial = [interpolated_size(size + pads, zoom, shrink) for size in sizes]
    return Result([(number, channels, *spatial)])


def _loss(layer: Message, bottoms: Sequence[Shape]) -> Result:
    """A scalar; a second top holds what the loss is of, softmax's probabilities for instance."""
    return Result([(), _axes(bottoms, 0)])


def _seg_accuracy(layer: Message, bottoms: Sequence[Shape]) -> Result:
    return Result([(1, 1, 1, 3)])


def _input(layer: Message, bottoms: Sequence[Shape]) -> Result:
    shapes = [shape_dims(shape) for shape in _param(layer, "input_param").get("shape", [])]
    if not shapes:
        raise UnknownShapeError("no shape given")
    count = len(names(layer, "top"))
    return Result(shapes * count if len(shapes) == 1 else shapes)


def _image_data(layer: Message, bottoms: Sequence[Shape]) -> Result:
    """Images as they are resized or cropped; DeepLab's ImageSegData gives a label map, ImageData a number an image."""
    param = _param(layer, "image_data_param")
    crop = _integer(_param(layer, "transform_param"), "crop_size", _integer(param, "crop_size", 0))
    height, width = (
        (crop, crop) if crop else (_integer(param, f"new_{side}", 0) for side in ("height", "width"))
    )
    number, channels = _integer(param, "batch_size", 1), 3 if _flag(param, "is_color", True) else 1
    if not height or not width:
        raise UnknownShapeError("the size of the images")
    if layer_type(layer) == "ImageSegData":
        return Result([(number, channels, height, width), (number, 1, height, width), (number, 1, 1, 2)])
    return Result([(number, channels, height, width), (number,)])


def _from_data(layer: Message, bottoms: Sequence[Shape]) -> Result:
    raise UnknownShapeError("the shape is in its data")


def _memory_data(layer: Message, bottoms: Sequence[Shape]) -> Result:
    param = _param(layer, "memory_data_param")
    fields = ("batch_size", "channels", "height", "width")
    number, *rest = (_integer(param, field, 0) for field in fields)
    return Result([(number, *rest), (number,)])


def _dummy_data(layer: Message, bottoms: Sequence[Shape]) -> Result:
    param, count = _param(layer, "dummy_data_param"), len(names(layer, "top"))
    shapes = [shape_dims(shape) for shape in param.get("shape", [])]
    if not shapes:
        columns = [integers(param, field) for field in ("num", "channels", "height", "width")]
        if len({len(column) for column in columns}) != 1:
            raise MisfitError("num, channels, height and width of different counts")
        shapes = list(zip(*columns, strict=True))
    return Result(shapes * count if len(shapes) == 1 else shapes)


def _silence(layer: Message, bottoms: Sequence[Shape]) -> Result:
    return Result(())


# --- the releases' Python layers, by class


def _python(layer: Message, bottoms: Sequence[Shape]) -> Result:
    param = _param(layer, "python_param")
    name = text(param, "layer")
    rule = _PYTHON_RULES.get(name)
    if rule is None:
        raise UnknownShapeError(f"unknown Python layer {name}")
    try:
        settings = ast.literal_eval(text(param, "param_str") or "{}")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        settings = None
    try:
        return Result(rule(bottoms, settings))
    except (LookupError, TypeError, ValueError):
        raise MisfitError(
            f"Python layer {name} with {len(bottoms)} bottoms and param_str {settings}"
        ) from None


def _annotation(bottoms: Sequence[Shape], settings: Any) -> list[Shape]:
    number = bottoms[0][0]
    return [(number, 1, 1, 21), (number, 21, 41, 41), *bottoms[1:]]  # the images come from DSRG's alone


def _annotation_coco(bottoms: Sequence[Shape], settings: Any) -> list[Shape]:
    number, (height, width) = int(settings["batch_size"]), map(int, settings["new_size"])
    grid = (height // 8 + 1, width // 8 + 1)
    return [(number, 1, 1, 81), (number, 81, *grid), (number, 3, height, width)]


def _image_seg_data(bottoms: Sequence[Shape], settings: Any) -> list[Shape]:
    number, (height, width) = int(settings["batch_size"]), map(int, settings["crop_size"])
    return [(number, 3, height, width), (number, 1, height, width)]


def _like(index: int) -> Callable[[Sequence[Shape], Any], list[Shape]]:
    return lambda bottoms, settings: [bottoms[index]]


def _one(bottoms: Sequence[Shape], settings: Any) -> list[Shape]:
    return [(1,)]


_PYTHON_RULES: dict[str, Callable[[Sequence[Shape], Any], list[Shape]]] = {
    "AnnotationLayer": _annotation,
    "AnnotationLayerCOCO": _annotation_coco,
    "ImageSegDataLayer": _image_seg_data,
    "SoftmaxLayer": _like(0),
    "CRFLayer": _like(0),
    "DSRGLayer": _like(2),
    "SeedLossLayer": _one,
    "BalancedSeedLossLayer": _one,
    "ConstrainLossLayer": _one,
    "ExpandLossLayer": _one,
}

RULES: dict[str, Callable[[Message, Sequence[Shape]], Result]] = {
    **dict.fromkeys(
        (
            *(
                "ReLU",
                "Dropout",
                "Sigmoid",
                "TanH",
                "BNLL",
                "ELU",
                "AbsVal",
                "Power",
                "Exp",
                "Log",
                "Threshold",
            ),
            *("LRN", "MVN", "Softmax", "Split"),
        ),
        _same,
    ),
    "Convolution": _convolution,
    "Deconvolution": _convolution,
    "Pooling": _pooling,
    "InnerProduct": _inner_product,
    "BatchNorm": _batch_norm,
    "Scale": _scale,
    "PReLU": _prelu,
    "Eltwise": _eltwise,
    "Concat": _concat,
    "Slice": _slice,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Crop": _crop,
    "Interp": _interp,
    **dict.fromkeys(
        (
            *("SoftmaxWithLoss", "EuclideanLoss", "SigmoidCrossEntropyLoss", "HingeLoss", "InfogainLoss"),
            *("ContrastiveLoss", "MultinomialLogisticLoss", "Accuracy"),
        ),
        _loss,
    ),
    "SegAccuracy": _seg_accuracy,
    "Silence": _silence,
    "Input": _input,
    "ImageData": _image_data,
    "ImageSegData": _image_data,
    **dict.fromkeys(("Data", "HDF5Data", "WindowData"), _from_data),
    "MemoryData": _memory_data,
    "DummyData": _dummy_data,
    "Python": _python,
}
