"""From a weight file into a PyTorch model and back, by Caffe layer name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from weights_conversion.caffemodel import read_caffemodel
from weights_conversion.errors import CaffeFileError, line_of, some
from weights_conversion.files import atomic_path
from weights_conversion.kinds import file_kind
from weights_conversion.model_layers import CaffeLayerView, caffe_layers, detached
from weights_conversion.sources import READERS, recognised, unwrapped
from weights_conversion.vgg16_files import Layers
from weights_conversion.wire import open_wire

# Bytes of a safetensors' header; ResNet-101's has 50 kB. Every tensor that it names costs memory, empty or not.
_MOST_HEADER = 1 << 20

# Those of 8 bits are read as float32: neither NumPy nor the copy into a net knows them.
_DTYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
}

# The ASPP layers that the releases' vgg16_20M_mc holds once a branch and vgg16_20M, its source, once.
_BRANCH = re.compile(r"(fc6|fc7)_[1-4]")


@dataclass(frozen=True)
class LoadReport:
    """What a load did, as layer names: ``loaded`` and ``missing`` (in the model, not in the file: they keep
    their values) in the model's order, ``unused`` (with blobs in the file, not in the model: ignored) in the
    file's. ``spread`` maps each layer that was filled from one of another name to that name; such layers are
    in ``loaded`` too. ``form`` says what the file is, ``changes`` what was done to names and values on the way.
    """

    path: str
    loaded: list[str]
    missing: list[str]
    unused: list[str]
    spread: dict[str, str] = field(default_factory=dict)
    form: str = ""
    changes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.path}: loaded {len(self.loaded)} of {len(self.loaded) + len(self.missing)} layers"]
        if self.form:
            parts[0] += f" from {self.form}"
        parts += self.changes
        if self.spread:
            parts.append("spread " + ", ".join(f"{source} -> {name}" for name, source in self.spread.items()))
        if self.missing:
            parts.append("not in the file, kept as they were: " + some(self.missing))
        if self.unused:
            parts.append("not in the model, ignored: " + some(self.unused))
        return "; ".join(parts)


def load_caffe_weights(
    model: nn.Module, path: str | os.PathLike[str], *, spread_branches: bool = False
) -> LoadReport:
    """Copy a ``.caffemodel`` or ``.caffemodel.h5`` into ``model`` as Caffe's CopyTrainedLayersFrom does.

    Layers correspond by name. Layers that only one side has are left alone and reported. Every blob's shape
    must be equal; a blob with an old four-axis shape may lack the model's leading axes where the file says 1.
    With ``spread_branches`` a file's single fc6 and fc7 (LargeFOV) also fill those of the model's
    fc6_1 … fc6_4 and fc7_1 … fc7_4 that the file does not have, as in the DSRG release's ``vgg16_20M_mc``.

    Raises ``CaffeFileError`` (a ``ValueError``) for a file that ``read_caffemodel`` refuses, where number or shape
    of a layer's blobs differ, and where a layer that is copied holds NaN or infinity; the model is then as it was.

    >>> import tempfile
    >>> from weights_conversion import write_caffemodel
    >>> net, other = nn.Sequential(), nn.Sequential()
    >>> net.add_module("conv", nn.Conv2d(3, 4, 1))
    >>> other.add_module("conv", nn.Conv2d(3, 4, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_caffemodel(net, f"{folder}/net.caffemodel")
    ...     report = load_caffe_weights(other, f"{folder}/net.caffemodel")
    >>> report.loaded, report.missing, report.unused
    (['conv'], [], [])
    """
    return _copy(model, _read_caffe(path), spread_branches)


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, spread_branches: bool = False
) -> LoadReport:
    """Copy any weight file into ``model``: Caffe's, safetensors (keys ``conv1_1.weight``, …), NumPy's .npz of such
    keys, or one of the files of PyTorch, Keras, ONNX and caffe-tensorflow that :mod:`weights_conversion.sources` knows.

    The rules, the report and the errors are those of ``load_caffe_weights``. The form is told from the file's
    content, or by the suffix ``.safetensors``.
    """
    return _copy(model, read_weights(path), spread_branches)


@dataclass(frozen=True)
class FileWeights:
    """A weight file: its layers by Caffe name, those without blobs too, and ``numbered``: blobs go by their place.

    The tensors may lie in the file (mapped copy-on-write), which must not change while they are in use.
    """

    path: str
    layers: dict[str, CaffeLayerView]
    form: str
    changes: list[str]
    numbered: bool = False

    @property
    def with_blobs(self) -> dict[str, CaffeLayerView]:
        return {name: layer for name, layer in self.layers.items() if layer.tensors}


_BATCH_NORM = ("mean", "variance", "factor")
_ORDER = ("weight", "bias", *_BATCH_NORM)  # of blobs in Caffe's files


def _blob_names(type_: str, blobs: Sequence[np.ndarray]) -> Sequence[str]:
    """The names of numbered blobs; HDF5 files state no types, there a BatchNorm has three, the last of one value."""
    if type_ == "Bias":
        return ("bias",)
    three = len(blobs) == 3 and type_ in ("", "BatchNorm") and blobs[2].size == 1
    if type_ == "BatchNorm" or three:
        return _BATCH_NORM[: len(blobs)]
    return [*("weight", "bias")[: len(blobs)], *(f"blob{index}" for index in range(2, len(blobs)))]


def _place(name: str) -> tuple[int, str]:
    return (_ORDER.index(name), "") if name in _ORDER else (len(_ORDER), name)


def read_weights(path: str | os.PathLike[str]) -> FileWeights:
    """The layers of a weight file of any form that ``load_weights`` reads; errors as there."""
    kind, where = file_kind(path), os.fspath(path)
    if kind == "safetensors":
        layers = read_safetensors(path)
        if foreign := recognised(unwrapped(layers), where):
            return FileWeights(where, _views(foreign.layers), f"safetensors, {foreign.form}", foreign.changes)
        return FileWeights(where, _views(layers), "safetensors", [])
    if kind in READERS:
        foreign = READERS[kind](path)
        return FileWeights(where, _views(foreign.layers), foreign.form, foreign.changes)
    if kind == "prototxt":
        raise CaffeFileError(f"{where}: a text file, expected weights")
    return _read_caffe(path)


def _read_caffe(path: str | os.PathLike[str]) -> FileWeights:
    content = read_caffemodel(path)
    layers = {}
    for name, layer in content.layers.items():
        names = _blob_names(layer.type, layer.blobs)
        tensors = {key: torch.from_numpy(blob) for key, blob in zip(names, layer.blobs, strict=True)}
        layers[name] = CaffeLayerView(layer.type or _type(tensors), tensors, layer.legacy)
    return FileWeights(os.fspath(path), layers, content.form, list(content.changes), numbered=True)


def _views(layers: Layers) -> dict[str, CaffeLayerView]:
    """Layers whose blobs have names, in the order of Caffe's blobs."""
    return {
        name: CaffeLayerView(_type(blobs), {key: blobs[key] for key in sorted(blobs, key=_place)})
        for name, blobs in layers.items()
    }


def _type(tensors: Mapping[str, Tensor]) -> str:
    """What the names of its blobs tell of a layer whose type the file does not state."""
    return "BatchNorm" if "factor" in tensors else ""


def read_safetensors(path: str | os.PathLike[str]) -> Layers:
    layers: Layers = {}
    with open_wire(path) as wire:
        if (length := int.from_bytes(wire.head[:8], "little")) > _MOST_HEADER:
            raise wire.error("", f"damaged safetensors file: a header of {length} bytes")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a handle, not a dict
        except Exception as error:  # SafetensorError, of its bindings KeyError, TypeError, …
            raise wire.error("", f"damaged safetensors file: {line_of(error)}") from error
        for key, tensor in tensors.items():
            layer, _, blob = key.rpartition(".")
            if tensor.dtype not in _DTYPES:
                raise wire.error(
                    key[:80], f"{tensor.dtype}; expected float32, float16, bfloat16, float64 or float8"
                )
            if tensor.element_size() == 1:
                tensor = tensor.float()
            layers.setdefault(layer, {})[blob] = tensor
    if not layers:
        raise CaffeFileError(f"{os.fspath(path)}: no tensors")
    return layers


class MisfitError(CaffeFileError):
    """A layer of a weight file that does not fit the model's; ``shapes`` are all of the file's, by layer."""

    def __init__(self, message: str, file: FileWeights) -> None:
        super().__init__(message)
        self.shapes = {
            name: {key: tuple(tensor.shape) for key, tensor in view.tensors.items()}
            for name, view in file.with_blobs.items()
        }


def _copy(model: nn.Module, file: FileWeights, spread_branches: bool) -> LoadReport:
    """Check everything, then copy everything."""
    views, layers = caffe_layers(model), file.layers
    sources: dict[str, str] = {}
    for name in views:
        branch = _BRANCH.fullmatch(name) if spread_branches else None
        if name in layers:
            sources[name] = name
        elif branch and branch[1] in layers:
            sources[name] = branch[1]

    copies: list[tuple[Tensor, Tensor]] = []
    for name, source in sources.items():
        tensors, blobs = views[name].tensors, layers[source].tensors
        if file.numbered:  # by their place, whatever they are called
            blobs = {str(index): blob for index, blob in enumerate(blobs.values())}
        what = f"{file.path}: layer {source!r}" + (f" for {name!r}" if source != name else "")
        expected = [str(i) for i in range(len(tensors))] if file.numbered else list(tensors)
        if set(blobs) != set(expected):
            raise MisfitError(
                f"{what}: {len(blobs)} blobs in the file ({', '.join(sorted(blobs)) or 'none'}), "
                f"{len(expected)} in the model ({', '.join(tensors)})",
                file,
            )
        legacy = layers[source].legacy or (False,) * len(tensors)
        for key, (label, tensor), old in zip(expected, tensors.items(), legacy, strict=True):
            blob = blobs[key]
            if not _same_shape(tuple(blob.shape), tuple(tensor.shape), old):
                raise MisfitError(
                    f"{what}, blob {key!r} ({label}): shape {tuple(blob.shape)} in the file, "
                    f"expected {tuple(tensor.shape)}",
                    file,
                )
            if not blob.is_floating_point():
                raise CaffeFileError(f"{what}, blob {key!r}: {blob.dtype}, expected floating point")
            check_finite(blob, f"{what}, blob {key!r} ({label})")
            copies.append((tensor, blob.reshape(tensor.shape)))

    with torch.no_grad():
        for tensor, values in copies:
            tensor.copy_(values)
    used = set(sources.values())
    return LoadReport(
        path=file.path,
        loaded=list(sources),
        missing=[name for name in views if name not in sources],
        unused=[name for name in file.with_blobs if name not in used],
        spread={name: source for name, source in sources.items() if name != source},
        form=file.form,
        changes=file.changes,
    )


def check_finite(values: Tensor, what: str) -> None:
    """Raise ``CaffeFileError`` for values that are NaN or infinite, as float32 has them.

    Caffe takes them as they are. Whatever a net with them computes is NaN, or one class everywhere.
    """
    if values.is_floating_point() and not torch.isfinite(
        values.float().sum()
    ):  # a sum of large ones may overflow
        wrong = values.numel() - int(torch.isfinite(values.float()).sum())
        if wrong:
            raise CaffeFileError(
                f"{what}: {wrong} of {values.numel()} values are NaN or infinity, finite numbers expected: the "
                "training that wrote it diverged, or the file is damaged; repro inspect FILE shows all its layers"
            )


def _same_shape(in_file: tuple[int, ...], in_model: tuple[int, ...], legacy: bool) -> bool:
    """Caffe's Blob::ShapeEquals: old shapes are compared with the model's, filled up to four axes with 1."""
    if legacy and len(in_model) <= 4:
        return in_file == (1,) * (4 - len(in_model)) + in_model
    return in_file == in_model


def save_safetensors(
    model: nn.Module | Mapping[str, CaffeLayerView],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the weights of ``model``, or layers, as safetensors under the keys ``<Caffe layer>.weight``, ``.bias``, ….

    Values keep their dtype. The file appears whole or not at all. ``metadata`` goes into its header; raises
    ``TypeError`` if it is not all strings.
    """
    if metadata and not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise TypeError("the metadata of a safetensors file must be strings")
    with atomic_path(path) as temporary:
        save_file(named_tensors(model), temporary, metadata=dict(metadata) if metadata else None)


def named_tensors(model: nn.Module | Mapping[str, CaffeLayerView]) -> dict[str, Tensor]:
    """Tensors on the CPU by ``<Caffe layer>.<blob>``; one that layers share is copied, so that each has its own."""
    views = caffe_layers(model) if isinstance(model, nn.Module) else model
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for layer, view in views.items():
        for name, tensor in view.tensors.items():
            values = detached(tensor)
            tensors[f"{layer}.{name}"] = values.clone() if id(tensor) in seen else values
            seen.add(id(tensor))
    return tensors
