"""A net beside OpenCV's Caffe importer, an implementation of its own that reads prototxt and weights by itself.

OpenCV (``cv2.dnn``, before 5.0) names outputs by layer, so a blob that in-place layers share is asked for by the last
of them; a Convolution it names by its top. Its own fusing of layers is off, which would leave blobs undone. Where it
cannot import a net, or has a layer with a setting that it ignores, every layer runs alone, on what ours reads. So what
it has no importer for is said in the table, and the rest is compared.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repro.constants import TOLERANCE
from repro.data.images import read_image_bgr, subtract_mean
from repro.errors import InputError
from repro.layers.resize import resize_bilinear_u8
from repro.models.net import CaffeNet, read_net
from repro.models.net_layer import NetLayer
from repro.parity.comparison import BlobComparison, Comparison, compare_blob, steps
from repro.parity.recorded import blobs_of
from weights_conversion.caffe_pb2 import BlobShape, LayerParameter, NetParameter
from weights_conversion.caffemodel import write_caffemodel
from weights_conversion.lift import lower
from weights_conversion.prototxt_format import format_prototxt
from weights_conversion.upgrade import upgraded
from weights_conversion.wire import blob_field

BESIDE = "those of OpenCV's importer"
# Settings that OpenCV (4.14) does not follow; our layers are held to recordings of Caffe in them.
_IGNORED = {
    "Deconvolution": "dilation",
    "InnerProduct": "transpose",
    "Interp": "shrink_factor",
    "LRN": "k",
    "Log": "base",
    "MVN": "eps",
}


def beside_opencv(
    net: CaffeNet,
    inputs: Mapping[str, np.ndarray],
    *,
    caffemodel: str | os.PathLike[str] | None = None,
    tolerance: float = TOLERANCE,
) -> Comparison:
    """Run ``net`` and OpenCV's import of it on the same inputs and compare every blob.

    Args:
        net: runs in evaluation mode, in float32, on its device. OpenCV reads the prototxt that it was loaded from.
        inputs: float32, by the name of the net's input.
        caffemodel: the file that the net was filled from, where OpenCV is to read it; else the net's weights, written.
        tolerance: as in :func:`repro.parity.first_difference`.

    Raises:
        InputError: OpenCV or its Caffe importer is not installed, or it can run no layer of the net.
    """
    cv2 = _importer()
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    given = {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}
    with _watched(net) as seen, torch.no_grad():
        blobs = blobs_of(net, given, net.path or net.name)
    theirs: dict[str, np.ndarray] = {}
    note = next(filter(None, (_ignored(net, layer) for layer in net.layers)), "")
    if not note:
        try:
            theirs = _whole(cv2, net, inputs, caffemodel)
        except cv2.error as error:
            note = f"OpenCV cannot import the net as a whole ({_reason(error)})"
    rows: list[BlobComparison] = []
    if note:
        note += ": each layer is compared alone, on the blobs that ours reads"
        for layer in net.layers:
            rows += _alone(cv2, net, layer, *seen[layer.name], tolerance)
    else:
        for step in steps((), ((layer.name, layer.type, layer.writes, ()) for layer in net.layers)):
            place = (step.layer, step.type, step.blob)
            if step.blob in theirs:
                rows.append(_compared(*place, blobs[step.blob], theirs[step.blob], tolerance, step.in_place))
            else:
                rows.append(BlobComparison(*place, note="OpenCV has no layer that gives it"))
    if not any(row.shape is not None for row in rows):
        reason = rows[0].note if rows else "it has none with a top"
        raise InputError(f"{net.path or net.name}: OpenCV can run no layer of this net: {reason}")
    return Comparison(rows, tolerance, BESIDE, note)


def example_inputs(
    net: CaffeNet, image: str | os.PathLike[str] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Inputs in the shapes of the prototxt: noise between -128 and 128, or an image for the first of them.

    The image is resized to the input's size and is BGR less the papers' mean (104, 117, 123), once for each item.

    Raises:
        InputError: an image that cannot be read, or a net whose first input has not three channels.
    """
    rng = np.random.default_rng(seed)
    inputs = {name: rng.uniform(-128, 128, shape).astype(np.float32) for name, shape in net.inputs.items()}
    if image is not None:
        name, shape = next(iter(net.inputs.items()), ("", ()))
        if len(shape) != 4 or shape[1] != 3:
            raise InputError(
                f"{os.fspath(image)}: the net's first input has the shape {shape}, not that of images"
            )
        pixels = resize_bilinear_u8(read_image_bgr(image), *shape[2:])
        inputs[name] = np.repeat(subtract_mean(pixels)[None], shape[0], axis=0)
    return inputs


_INSTALL = (
    "pip install 'opencv-python-headless<5', or compare with a recording of Caffe's blobs (--recording)"
)


def _importer() -> Any:
    """OpenCV's module.

    Raises:
        InputError: it is not installed, or has no Caffe importer.
    """
    try:
        import cv2
    except ImportError:
        raise InputError(f"check: needs OpenCV's Caffe importer: {_INSTALL}") from None
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise _without_importer(cv2)
    return cv2


def _without_importer(cv2: Any) -> InputError:
    version = getattr(cv2, "__version__", "of no version")
    return InputError(f"check: this OpenCV ({version}) has no Caffe importer, which 5.0 dropped: {_INSTALL}")


Seen = dict[str, tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]]


@contextmanager
def _watched(net: CaffeNet) -> Iterator[Seen]:
    """What each layer reads and gives, by its name; the net is in evaluation mode meanwhile."""
    seen: Seen = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, bottoms: tuple[torch.Tensor, ...], tops: Any) -> None:
            seen[name] = bottoms, tuple(tops) if isinstance(tops, (tuple, list)) else (tops,)

        return hook

    training = net.training
    net.eval()
    handles = [net[layer.name].register_forward_hook(keep(layer.name)) for layer in net.layers]
    try:
        yield seen
    finally:
        net.train(training)
        for handle in handles:
            handle.remove()


def _whole(
    cv2: Any, net: CaffeNet, inputs: Mapping[str, np.ndarray], caffemodel: str | os.PathLike[str] | None
) -> dict[str, np.ndarray]:
    """OpenCV's blobs by Caffe's names, from the net as a whole."""
    with tempfile.TemporaryDirectory() as folder:
        if caffemodel is None and net.params:
            caffemodel = Path(folder) / "net.caffemodel"
            write_caffemodel(net, caffemodel)
        model = b"" if caffemodel is None else Path(caffemodel).read_bytes()
        imported = _read(cv2, _prototxt(net), model)
    known = set(imported.getLayerNames())
    asked = [layer for layer in net.layers if layer.tops and _name(layer) in known]
    outputs = _forward(cv2, imported, inputs, [_name(layer) for layer in asked])
    return {
        blob: values
        for layer, found in zip(asked, outputs, strict=True)
        for blob, values in zip(layer.tops, found, strict=False)
    }


def _name(layer: NetLayer) -> str:
    """OpenCV's name of a layer."""
    return layer.top if layer.type == "Convolution" else layer.name


def _ignored(net: CaffeNet, layer: NetLayer) -> str:
    """Which setting of the layer OpenCV does not follow, if one."""
    field = _IGNORED.get(layer.type)
    if field is None:
        return ""
    message = net[layer.name].p
    # DeepLab-v1's hole is dilation, too
    value: Any = net[layer.name].dilation if field == "dilation" else getattr(message, field)
    default = message.DESCRIPTOR.fields_by_name[field].default_value
    if all(size == 1 for size in value) if isinstance(default, list) else value == default:
        if layer.type == "LRN" and not message.HasField("alpha"):
            return f"OpenCV's default for alpha, which layer {layer.name} leaves out, is not Caffe's"
        return ""
    return f"OpenCV ignores {field} of layer {layer.name}"


def _alone(
    cv2: Any,
    net: CaffeNet,
    layer: NetLayer,
    bottoms: tuple[torch.Tensor, ...],
    tops: tuple[torch.Tensor, ...],
    tolerance: float,
) -> Iterator[BlobComparison]:
    """A layer by itself, with its weights, on what ours read."""
    places = [(layer.name, layer.type, top) for top in layer.tops]
    if not places:
        return
    if note := _ignored(net, layer):
        yield from (BlobComparison(*place, note=note) for place in places)
        return
    inputs = {name: bottom.cpu().numpy() for name, bottom in zip(layer.bottoms, bottoms, strict=True)}
    parameter = NetParameter(
        input=inputs, input_shape=[BlobShape(dim=values.shape) for values in inputs.values()]
    )
    parameter.layer.add().CopyFrom(net[layer.name].layer)
    for field in ("param", "loss_weight", "propagate_down", "include", "exclude"):
        parameter.layer[0].ClearField(field)
    _holes_as_dilation(net, parameter)
    weights = NetParameter()
    weights.layer.add(name=layer.name, type=layer.type)
    number = LayerParameter.DESCRIPTOR.fields_by_name["blobs"].number
    for blob in net.params.get(layer.name, []):
        values = blob.detach().cpu().float().numpy()
        head, floats = blob_field(number, values.reshape(values.shape or (1,)))  # OpenCV knows no scalars
        weights.layer[0].MergeFromString(head + floats.tobytes())
    try:
        imported = _read(cv2, format_prototxt(lower(parameter)).encode(), weights.SerializeToString())
        theirs = _forward(cv2, imported, inputs, [_name(layer)])[0]
    except cv2.error as error:
        reason = _reason(error)
        missing = reason.startswith("Can't create layer")
        note = f"OpenCV has no importer for {layer.type}" if missing else f"OpenCV cannot run it: {reason}"
        yield from (BlobComparison(*place, note=note) for place in places)
        return
    for place, ours, found in zip(places, tops, theirs, strict=False):
        yield _compared(*place, ours, found, tolerance)
    yield from (BlobComparison(*place, note="OpenCV does not give it") for place in places[len(theirs) :])


def _prototxt(net: CaffeNet) -> bytes:
    """The file that the net was loaded from; its text where it was made otherwise, or where the file has what OpenCV
    would not read so: layers of other phases, which it would build, too, and DeepLab-v1's ``hole``."""
    parameter = NetParameter()
    parameter.CopyFrom(net.parameter)
    holes = _holes_as_dilation(net, parameter)
    if Path(net.path).is_file() and not holes:  # a pipe has been read already
        message = read_net(net.path)
        if len(upgraded(message, net.path).layer) == len(net.parameter.layer):
            return Path(net.path).read_bytes()
    return format_prototxt(lower(parameter)).encode()


def _holes_as_dilation(net: CaffeNet, parameter: NetParameter) -> bool:
    """Say ``dilation`` where layers of ``parameter`` say ``hole``, which OpenCV does not know. True if any did."""
    found = False
    for layer in parameter.layer:
        if layer.type not in ("Convolution", "Deconvolution"):
            continue
        p = layer.convolution_param
        given = [field.name for field, _ in p.ListFields() if field.name.startswith("hole")]
        for name in given:
            p.ClearField(name)
        if given:
            p.dilation[:] = net[layer.name].dilation
            found = True
    return found


def _read(cv2: Any, prototxt: bytes, caffemodel: bytes) -> Any:
    arrays = [np.frombuffer(content, np.uint8) for content in (prototxt, caffemodel) if content]
    with _quiet(cv2):
        imported = cv2.dnn.readNetFromCaffe(*arrays)
        if imported is None:
            raise _without_importer(cv2)
        imported.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
        imported.enableFusion(False)
        imported.enableWinograd(False)  # its own rounding, of up to 1e-5
    return imported


def _forward(
    cv2: Any, imported: Any, inputs: Mapping[str, np.ndarray], layers: list[str]
) -> list[tuple[np.ndarray, ...]]:
    with _quiet(cv2):
        for name, values in inputs.items():
            imported.setInput(np.ascontiguousarray(values), name)
        outputs: list[tuple[np.ndarray, ...]] = imported.forwardAndRetrieve(layers) if layers else []
        return outputs


@contextmanager
def _quiet(cv2: Any) -> Iterator[None]:
    """Without what OpenCV itself logs of an error, several lines beside ours."""
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


def _reason(error: Any) -> str:
    return " ".join(str(getattr(error, "err", "") or error).split())


def _compared(
    layer: str,
    type_: str,
    blob: str,
    ours: torch.Tensor,
    theirs: np.ndarray,
    tolerance: float,
    in_place: tuple[str, ...] = (),
) -> BlobComparison:
    """OpenCV has no blobs of fewer than two axes."""
    if ours.ndim < 2 and ours.numel() == theirs.size:
        theirs = theirs.reshape(tuple(ours.shape))
    return compare_blob(layer, type_, blob, ours, theirs, tolerance, in_place)
