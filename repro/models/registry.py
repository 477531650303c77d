"""One entry per Caffe layer type: what it does, its blobs and their fillers, its form in ONNX.

A type is a class under ``@register("Type")``, in ``repro/models/layer_types/`` or in a user's own file::

    @register("Mish")
    class Mish(Layer):
        field = "mish_param"            # its message in LayerParameter, which is then self.p; leave out if it has none

        def setup(self) -> None:        # once, when the net is built: read the message, make the blobs
            self.beta = self.p.beta

        def forward(self, x):           # tensors of the bottoms -> tensor of the top, or a tuple for several tops
            return x * torch.tanh(F.softplus(self.beta * x))

        def onnx(self, graph, bottoms, tops):
            soft = graph.step("softplus", "Softplus", bottoms)
            graph.emit("Mul", [bottoms[0], graph.step("tanh", "Tanh", [soft])], tops[0])

A type without settings may be a plain function of its bottoms: ``@register("Square") def square(x): return x * x``.
One that calls a function of PyTorch's or ours may derive from :class:`Called`: ``function`` in the class,
``self.arguments`` in ``setup``. Where one operator of ONNX does the same, ``operator`` in the class is its name and
``self.attributes`` are its attributes; the layer then needs no ``onnx``.

**Reading.** ``self.layer`` is the typed LayerParameter, ``self.p`` the message in its ``field`` (with Caffe's defaults;
``self.p.HasField("axis")`` tells what was written). Both are slow: ``setup`` copies what ``forward`` needs into plain
attributes. ``self.bottoms`` are what the layer reads: name, shape as built, and the layer that made it.
``counts`` and ``top_counts`` (a number, or lowest and highest with None for any) are checked before ``setup``, and
``bottom_axes``, where the first bottom must have so many.
What does not fit ends in ``self.fail("kernel_size", "expected …, found …")``: one line that names layer and field.
A setting that would change a number and is not supported is refused in the same way, never ignored.

**Blobs.** ``self.blob("weight", shape, filler)`` in ``setup`` makes ``self.weight``, in the order of Caffe's blobs. The
names are those of tensors in weight files: ``weight``, ``bias``; BatchNorm's ``mean``, ``variance``, ``factor``.
``filler`` is a FillerParameter; without one it is ``constant`` 0. ``learnt=False``: no gradient.
Annotate others than weight and bias in the class (``mean: torch.Tensor``). Until a net is whole they are on the
``meta`` device. ``setup`` makes no other tensors: constants are numbers or NumPy arrays there, tensors in ``forward``.

**Shapes** come from running ``forward`` on the meta device: ``infer`` gets and gives meta tensors. A layer whose
``forward`` cannot run there (it looks at values, or calls a compiled kernel) overrides ``infer``; ``meta(shape)`` makes
its result. ``keeps_shape = True`` says that the top has the first bottom's shape. PyTorch's first operator on the meta
device imports for seconds, so the types that nearly every net has (convolution, pooling, inner product, activations)
give their shapes themselves; the tests hold them to ``forward``.

**Phases.** ``forward`` asks ``self.training``, as any PyTorch module; a net of phase TEST is in evaluation mode, but
for a layer with ``phase: TRAIN``.
Layers never work in-place on their bottoms. One that, like DSRG's CRF layer, edits a bottom which later layers read
names its index in ``edits`` and returns the edited tensors behind its tops. One whose backward pass in Caffe reads its
bottom or its top says so (``reads_bottom``, ``reads_top``) and has ``caffe_gradient``, for blobs that later in-place
layers overwrite; ``harmless_after`` are types that may follow without changing it.

**Losses** set ``is_loss = True``: their first top then has loss_weight 1 unless the file says another.
Tops that are only reported (Accuracy) need nothing: any other top has loss_weight 0.

**Data.** Layers that make batches are :class:`DataLayer` classes: ``infer()`` gives the shapes without reading the data
where that is possible, ``make()`` gives the batch of ``self.number``. What is random in it is a function of
``self.stream_seed`` and of that number, so that a run resumes anywhere. Their tops may be given to the net as inputs
instead. ``keys`` say by which settings of ours (``data.list``) a run changes which of their fields.

**Python layers** are registered by module and class, ``@register("pylayers.SoftmaxLayer")``. A file that names another
module for a class of that name gets the same entry. ``self.settings()`` is the param_str as a dictionary.

**ONNX.** ``onnx(graph, bottoms, tops)`` gets names of tensors. ``graph.step(what, operator, inputs, **attributes)``
adds a node and returns its output's name, ``graph.emit(operator, inputs, top, **attributes)`` the one that gives a top,
``graph.parameter(self, "weight")`` is a blob, ``graph.number(0.5)``, ``graph.numbers(1, 2)``, ``graph.integer(n)`` and
``graph.constant(name, array)`` are other values.
Without the method the layer has no form in ONNX, and exporting its net is refused with its name.

**Plain PyTorch.** ``source(code, *bottoms)`` gets names of variables and returns the expression of the top, or several:
``return f"torch.tanh({bottoms[0]})"``. ``code.module("nn.Linear(3, 5)")`` is an attribute that holds the blobs,
``code.blob("weight")`` one of them, ``code.call(function, *values, **named)`` a call of a function of this project,
which is copied into the file. Without the method the layer has no such form.

**Cost.** ``multiply_adds(shapes)`` counts the multiplications with weights for bottoms of these shapes, 0 by default.
"""

from __future__ import annotations

import ast
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeVar

import numpy as np
import torch
from torch import nn

from repro.errors import InputError, hint
from weights_conversion.caffe_pb2 import TRAIN, FillerParameter, LayerParameter
from weights_conversion.lift import is_repeated

Shape = tuple[int, ...]
Count = int | tuple[int, int | None]
Entry = TypeVar("Entry", bound="type[Layer] | Callable[..., Any]")

_ENTRIES: dict[str, type[Layer]] = {}
_NOT_HERE = {  # types that Caffe or its forks have and this project leaves out on purpose
    **dict.fromkeys(("LSTM", "RNN", "Recurrent", "LSTMUnit"), "recurrent layers are left out"),
    **dict.fromkeys(
        (
            *("PriorBox", "DetectionOutput", "DetectionEvaluate", "MultiBoxLoss", "AnnotatedData"),
            *("VideoData", "ROIPooling", "ROIAlign", "PSROIPooling", "Proposal", "SmoothL1Loss"),
            *("Region", "YoloDetectionOutput"),
        ),
        "detection layers are left out",
    ),
    **dict.fromkeys(
        ("DenseCRF", "DomainTransform", "AdaptiveBiasChannel", "UnPooling", "MatRead", "MatWrite"),
        "this layer of DeepLab's Caffe runs on a GPU or belongs to scripts that are not here",
    ),
    **dict.fromkeys(("Data", "WindowData"), "LMDB and LevelDB are not read; ImageData and HDF5Data are"),
    "HDF5Output": "forward_blobs gives every blob",
}
_ABOVE = {  # types whose entries read files, with what stands above this package; imported when a net has one
    **dict.fromkeys(("ImageData", "ImageSegData", "HDF5Data"), "repro.data.data_layers"),
    **dict.fromkeys(
        ("AnnotationLayer", "AnnotationLayerCOCO", "ImageSegDataLayer"), "repro.data.release_layers"
    ),
}


def meta(shape: Sequence[int]) -> torch.Tensor:
    """A tensor of this shape without values."""
    return torch.empty(tuple(shape), device="meta")


def beyond_caffe(shape: Shape) -> str:
    """Why Caffe's ``Blob::Reshape`` refuses a shape; "" where it takes it."""
    if len(shape) > 32:
        return f"{len(shape)} axes, Caffe takes 32 at most"
    if math.prod(shape) >= 2**31:
        return "more values than Caffe takes, 2147483647 at most"
    return ""


def shapes_of(blobs: Sequence[torch.Tensor]) -> str:
    """The shapes of blobs, for a message."""
    return ", ".join(str(tuple(blob.shape)) for blob in blobs)


@dataclass(frozen=True)
class Bottom:
    """A blob that a layer reads: its name, its shape as built, and the layer that made it (None: the net's input)."""

    name: str
    shape: Shape
    maker: Layer | None = None


class Layer(nn.Module):
    """Base of every layer type; see the head of :mod:`repro.models.registry`."""

    field: ClassVar[str] = ""
    counts: ClassVar[Count] = 1
    top_counts: ClassVar[Count] = 1
    bottom_axes: ClassVar[int] = 0
    is_loss: ClassVar[bool] = False
    edits: ClassVar[tuple[int, ...]] = ()
    keeps_shape: ClassVar[bool] = False
    in_place: ClassVar[bool] = True  # whether Caffe takes a top of a bottom's name
    reads_bottom: ClassVar[bool] = False
    reads_top: ClassVar[bool] = False
    overwrites_itself: ClassVar[bool] = False
    mixes_images: bool = False  # what it gives for an image depends on the others of the batch
    columns: ClassVar[tuple[str, ...]] = ()  # endings of the log's columns, where the top has several numbers
    harmless_after: ClassVar[frozenset[str]] = frozenset()
    weight: torch.Tensor
    bias: torch.Tensor | None
    function: Callable[..., Any]  # called with bottoms, blobs and arguments, by a type without ``forward``
    arguments: Mapping[str, Any] = {}
    operator: ClassVar[str] = ""  # ONNX's for the whole layer, where there is one, with ``attributes``
    attributes: Mapping[str, Any] = {}

    def __init__(self, layer: LayerParameter, bottoms: Sequence[Bottom]) -> None:
        super().__init__()
        self.layer, self.bottoms = layer, tuple(bottoms)
        self.p: Any = getattr(layer, self.field) if self.field else None
        self.fillers: dict[str, FillerParameter] = {}
        self.not_learnt: set[str] = set()
        self._check_count("bottoms", self.counts, len(bottoms))
        self._check_count("tops", self.top_counts, len(layer.top))
        if not self.in_place and (both := {*layer.top} & {*layer.bottom}):
            self.fail("top", f"{min(both)!r} is a bottom too, the layer cannot be in-place")
        if self.bottom_axes and len(self.shapes[0]) != self.bottom_axes:
            self.fail("", f"a bottom of {len(self.shapes[0])} axes, expected {self.bottom_axes}")
        self.setup()

    @property
    def caffe_name(self) -> str:
        return self.layer.name

    @property
    def caffe_type(self) -> str:
        return self.layer.type

    @property
    def shapes(self) -> list[Shape]:
        """The bottoms' shapes as built."""
        return [bottom.shape for bottom in self.bottoms]

    def setup(self) -> None:
        """Read ``self.p`` and make the blobs."""

    def train(self, mode: bool = True) -> Layer:
        """A ``phase`` of the layer's own goes before the net's."""
        return super().train(self.layer.phase == TRAIN if self.layer.HasField("phase") else mode)

    def _call(self, *bottoms: torch.Tensor) -> Any:
        return type(self).function(*bottoms, *self.caffe_blobs().values(), **self.arguments)

    forward: Callable[..., Any] = _call

    def infer(self, *bottoms: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """What ``forward`` gives, on the meta device, where only shapes count."""
        if self.keeps_shape:
            return meta(bottoms[0].shape)
        own = self._parameters
        self._parameters = {name: None if blob is None else blob.to("meta") for name, blob in own.items()}  # type: ignore[misc]
        try:
            with torch.no_grad():
                result: torch.Tensor | tuple[torch.Tensor, ...] = self.forward(*bottoms)
        finally:
            self._parameters = own
        return result

    def items(self, *bottoms: torch.Tensor) -> torch.Tensor | int | None:
        """How many items a loss of these bottoms is a mean over; 0 for a sum.

        Where processes share a batch, each part's loss counts by its share of them. None: the loss cannot be shared.
        """
        return None

    def caffe_gradient(self, top_diff: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """The bottom's gradient where Caffe reads a blob that now holds other values (:mod:`repro.models.in_place`)."""
        raise NotImplementedError

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        if not self.operator:
            raise InputError(f"{self}: cannot be exported to ONNX")
        graph.emit(self.operator, bottoms, tops[0], **self.attributes)

    def source(self, code: Any, *bottoms: str) -> str | Sequence[str]:
        raise InputError(f"{self}: cannot be written in plain PyTorch")

    def multiply_adds(self, shapes: Sequence[Shape]) -> int:
        return 0

    def blob(
        self, name: str, shape: Sequence[int], filler: FillerParameter | None = None, *, learnt: bool = True
    ) -> nn.Parameter:
        """Make the next of the layer's blobs, float32."""
        if any(size < 1 for size in shape):
            self.fail("", f"its blob {name} would have the shape {tuple(shape)}")
        parameter = nn.Parameter(meta(shape), requires_grad=learnt)
        self.register_parameter(name, parameter)
        self.fillers[name] = filler if filler is not None else FillerParameter()
        if not learnt:
            self.not_learnt.add(name)
        return parameter

    def caffe_blobs(self) -> dict[str, nn.Parameter]:
        """The blobs by name, in Caffe's order."""
        return {name: blob for name in self.fillers if (blob := self._parameters[name]) is not None}

    def fail(self, field: str, reason: str) -> NoReturn:
        """Refuse the layer: ``field`` is one of its message, of the layer, or a path with dots; "" for none."""
        own = not self.field or field in LayerParameter.DESCRIPTOR.fields_by_name
        where = field if own or "." in field or not field else f"{self.field}.{field}"
        raise InputError(f"{self}: {f'{where}: ' if where else ''}{reason}")

    def refuse(self, *fields: str) -> None:
        """Refuse the layer if any of these fields of its message is set: for those that are not supported."""
        for field in fields:
            value = getattr(self.p, field)
            if value if is_repeated(self.p.DESCRIPTOR.fields_by_name[field]) else self.p.HasField(field):
                self.fail(field, "not supported")

    def axis(self, axis: int, field: str = "axis") -> int:
        """A canonical axis of the first bottom, counted from the end where negative."""
        axes = len(self.shapes[0])
        if not -axes <= axis < axes:
            self.fail(field, f"no axis {axis} in a blob of {axes} axes")
        return axis % axes

    def settings(self) -> dict[str, Any]:
        """A Python layer's param_str, the text of a dictionary, as the releases write it; empty without one."""
        return param_str(self.layer)

    def _check_count(self, what: str, allowed: Count, found: int) -> None:
        lowest, highest = allowed if isinstance(allowed, tuple) else (allowed, allowed)
        if found < lowest or (highest is not None and found > highest):
            upto = "" if highest == lowest else " or more" if highest is None else f" to {highest}"
            self.fail("", f"{found} {what}, expected {lowest}{upto}")

    def __str__(self) -> str:
        return describe(self.layer)


class Called(Layer):
    """A layer that calls a function of PyTorch's or of this project, here and in plain PyTorch."""

    def source(self, code: Any, *bottoms: str) -> str:
        return str(code.call(type(self).function, *bottoms, *map(code.blob, self.fillers), **self.arguments))


class DataLayer(Layer):
    """A layer that makes batches: ``forward()`` gives the next one on the CPU, one tensor per top.

    Its bottoms, if it has any, are tops of other data layers. Batches are numbered from 0, ``number`` is the next
    one's. ``seed`` decides what is random in them; by default it is drawn from PyTorch's generator. ``share`` is the
    part of each batch to make, where several processes divide it.
    """

    counts: ClassVar[Count] = 0
    top_counts: ClassVar[Count] = (1, None)
    keys: ClassVar[Mapping[str, str]] = {}  # our key in data -> field of the message or of param_str
    batch = 1
    seed: int | None = None
    number = 0
    share = slice(None)
    extras: Mapping[str, torch.Tensor] = {}  # what a training asks for beside the tops of the batch made last

    @classmethod
    def setting(cls, layer: LayerParameter, key: str) -> Any:
        """What the layer of a file has under one of ``keys``; None where it says nothing."""
        if not cls.field:
            return param_str(layer).get(cls.keys[key])
        message = getattr(layer, cls.field)
        return getattr(message, cls.keys[key]) if message.HasField(cls.keys[key]) else None

    @classmethod
    def change(cls, layer: LayerParameter, key: str, value: Any) -> None:
        """Give it another value."""
        if cls.field:
            setattr(getattr(layer, cls.field), cls.keys[key], value)
        else:
            layer.python_param.param_str = repr({**param_str(layer), cls.keys[key]: value})

    @property
    def stream_seed(self) -> int:
        if self.seed is None:
            self.seed = int(torch.randint(2**31, ()).item())
        return self.seed

    def positions(self) -> range:
        """The places of this batch's items in the stream of all items."""
        return range(self.number * self.batch, (self.number + 1) * self.batch)[self.share]

    def forward(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tops = self.make(*bottoms)
        self.number += 1
        return tops

    def make(self, *bottoms: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The batch of ``number``."""
        raise NotImplementedError

    def check(self) -> None:
        """Look at the lists and files as a whole, before a training begins.

        Raises:
            InputError: what a batch would find wrong hours later.
        """


def keyed(*alike: str, **others: str) -> dict[str, str]:
    """``keys`` of a data layer: those ``alike`` are our keys' names and its fields', the others have two."""
    return {**others, **{name: name for name in alike}}


def batch_seed(seed: int, number: int) -> int:
    """A seed of the batch's own, for random numbers of PyTorch's."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])


def param_str(layer: LayerParameter) -> dict[str, Any]:
    """A Python layer's param_str, the text of a dictionary.

    Raises:
        InputError: it is none.
    """
    text = layer.python_param.param_str
    try:
        value = ast.literal_eval(text.replace("float('inf')", "1e999") or "{}")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, dict):
        where = "python_param.param_str"
        raise InputError(
            f"{describe(layer)}: {where}: expected a dictionary of constants, found {text[:60]!r}"
        )
    return value


def describe(layer: LayerParameter) -> str:
    """How messages name a layer: ``layer 'conv1' (Convolution)``."""
    type_ = layer.type
    if type_ == "Python":
        type_ = f"Python {layer.python_param.module}.{layer.python_param.layer}"
    return f"layer {layer.name!r} ({type_})"


def register(type_: str) -> Callable[[Entry], Entry]:
    """Add a layer type to those that nets are built of: a decorator of a :class:`Layer` class or of a function.

    Args:
        type_: Caffe's name of the type, or ``module.Class`` of a Python layer.

    Raises:
        ValueError: the type is there already.

    >>> @register("Cube")
    ... def cube(x):
    ...     return x**3
    """

    def add(entry: Entry) -> Entry:
        if type_ in _ENTRIES:
            raise ValueError(f"layer type {type_} is registered already")
        if isinstance(entry, type):
            _ENTRIES[type_] = entry
        else:
            _ENTRIES[type_] = type(type_, (Layer,), {"counts": (1, None), "function": entry})
        return entry

    return add


def layer_class(layer: LayerParameter) -> type[Layer]:
    """The entry of a layer's type.

    Raises:
        InputError: there is none.
    """
    import repro.models.layer_types  # noqa: F401  the entries, which need the classes above

    is_python = layer.type == "Python"
    name = layer.python_param.layer if is_python else layer.type
    if name in _ABOVE:
        importlib.import_module(_ABOVE[name])
    alike = None
    if is_python:
        by_class = {known.rpartition(".")[2]: entry for known, entry in _ENTRIES.items() if "." in known}
        alike = by_class.get(name)
        name = f"{layer.python_param.module}.{name}"
    entry = _ENTRIES.get(name, alike)
    if entry is None and not name:
        raise InputError(f"{describe(layer)}: type: the layer has none")
    if entry is None:
        reason = f" ({_NOT_HERE[name]})" if name in _NOT_HERE else hint(name, _ENTRIES)
        add = f'add it in Python with @repro.models.register("{name}"), see docs/design.md'
        raise InputError(f"{describe(layer)}: type: {name!r} is not known{reason}; {add}")
    return entry
