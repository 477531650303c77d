"""Old nets in today's layout, as Caffe upgrades them when it reads one (``upgrade_proto.cpp``).

V0 nets hold each layer's settings in one message for all types, V1 nets in one a type with an enum for the type and
``blobs_lr``, ``weight_decay`` and ``param`` beside each other. Both are turned into ``layer`` messages here. Data
layers' own ``scale``, ``mean_file``, ``crop_size`` and ``mirror`` move into ``transform_param``, in every layout.
"""

from __future__ import annotations

from weights_conversion.caffe_pb2 import (
    LayerParameter,
    NetParameter,
    ParamSpec,
    PoolingParameter,
    V0LayerParameter,
    V1LayerParameter,
)
from weights_conversion.errors import CaffeFileError
from weights_conversion.lift import is_repeated

_CAPITALS = ("BNLL", "LRN", "MVN", "BN")
_SPELLED = {
    "HDF5": "HDF5",
    "RELU": "ReLU",
    "TANH": "TanH",
    "ARGMAX": "ArgMax",
    "ABSVAL": "AbsVal",
    "PRELU": "PReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "UNPOOLING": "Unpooling",
    "DENSE_CRF": "DenseCRF",
}


def _spelled(name: str) -> str:
    if name in _SPELLED:
        return _SPELLED[name]
    words = name.split("_")
    return "".join(word if word in _CAPITALS else _SPELLED.get(word, word.capitalize()) for word in words)


# the number of a V1 layer's type -> its name today
V1_TYPES = {number: _spelled(name) for name, number in V1LayerParameter.LayerType.items() if number}

_V0_TO_V1 = {
    name: name.upper()
    for name in (
        *("accuracy", "bnll", "concat", "data", "dropout", "euclidean_loss", "flatten", "hdf5_data"),
        *("hdf5_output", "im2col", "infogain_loss", "lrn", "multinomial_logistic_loss", "relu", "sigmoid"),
        *("softmax", "softmax_loss", "split", "tanh", "window_data"),
    )
} | {"conv": "CONVOLUTION", "images": "IMAGE_DATA", "innerproduct": "INNER_PRODUCT", "pool": "POOLING"}
# a V0 type -> its name today
V0_TYPES = {old: V1_TYPES[V1LayerParameter.LayerType.Value(name)] for old, name in _V0_TO_V1.items()}


def _into(message: str, *alike: str, **others: str) -> dict[str, tuple[str, str]]:
    """V0 fields -> the message that they go into and the field in it, for some the one of their name."""
    return {old: (message, new) for old, new in ({name: name for name in alike} | others).items()}


_TRANSFORM = _into("transform_param", "scale", "mirror", meanfile="mean_file", cropsize="crop_size")
_V0_FIELDS = {  # by the type
    "conv": _into(
        "convolution_param",
        *("num_output", "group", "weight_filler", "bias_filler", "pad", "stride"),
        biasterm="bias_term",
        kernelsize="kernel_size",
    ),
    "innerproduct": _into(
        "inner_product_param", "num_output", "weight_filler", "bias_filler", biasterm="bias_term"
    ),
    "pool": _into("pooling_param", "pool", "pad", "stride", kernelsize="kernel_size"),
    "dropout": _into("dropout_param", "dropout_ratio"),
    "lrn": _into("lrn_param", "local_size", "alpha", "beta", "k"),
    "concat": _into("concat_param", "concat_dim"),
    "infogain_loss": _into("infogain_loss_param", "source"),
    "hdf5_output": {"hdf5_output_param": ("hdf5_output_param", "")},
    "hdf5_data": _into("hdf5_data_param", "source", batchsize="batch_size"),
    "data": _into("data_param", "source", "rand_skip", batchsize="batch_size") | _TRANSFORM,
    "images": _into(
        "image_data_param",
        *("source", "rand_skip", "new_height", "new_width"),
        batchsize="batch_size",
        shuffle_images="shuffle",
    )
    | _TRANSFORM,
    "window_data": _into("window_data_param", "source", batchsize="batch_size")
    | {
        f"det_{name}": ("window_data_param", name)
        for name in ("fg_threshold", "bg_threshold", "fg_fraction", "context_pad", "crop_mode")
    }
    | _TRANSFORM,
}
_V0_COMMON = ("name", "type", "blobs", "blobs_lr", "weight_decay")

_TRANSFORMS = {"Data": "data_param", "ImageData": "image_data_param", "WindowData": "window_data_param"}


def upgraded(net: NetParameter, path: str = "") -> NetParameter:
    """A copy of ``net`` in today's layout: no ``layers``, no data layer with transformations of its own.

    Raises:
        CaffeFileError: both layouts in one net, or a layer that has no form in today's.
    """
    where = f"{path}: " if path else ""
    result = NetParameter()
    result.CopyFrom(net)
    if net.layers and net.layer:
        raise CaffeFileError(f"{where}both layer and layers, expected one of them")
    result.ClearField("layers")
    if net.layers:
        result.layer.extend(_upgraded_layer(layer, where) for layer in _without_padding(net, where))
    for layer in result.layer:
        _move_transformation(layer)
        if layer.type == "BatchNorm" and len(layer.param) == 3:
            for param in layer.param:
                param.lr_mult = param.decay_mult = 0  # its blobs are never learnt
    return result


def _without_padding(net: NetParameter, where: str) -> list[V1LayerParameter]:
    """V1 layers, with each V0 padding layer folded into the convolution or pooling that reads it."""
    layers: list[V1LayerParameter] = []
    pads: dict[str, tuple[str, int]] = {}
    for layer in net.layers:
        old = layer.layer
        if layer.HasField("layer") and old.type == "padding":
            if len(layer.bottom) != 1 or len(layer.top) != 1:
                raise CaffeFileError(
                    f"{where}layer {old.name!r}: padding with other than one bottom and one top"
                )
            pads[layer.top[0]] = (layer.bottom[0], old.pad)
            continue
        copy = V1LayerParameter()
        copy.CopyFrom(layer)
        for index, bottom in enumerate(layer.bottom):
            if bottom in pads:
                if old.type not in ("conv", "pool") or len(layer.bottom) != 1:
                    raise CaffeFileError(
                        f"{where}layer {old.name!r}: reads a padding layer, which only conv and pool can"
                    )
                copy.bottom[index], copy.layer.pad = pads[bottom]
        layers.append(_from_v0(copy, where) if layer.HasField("layer") else copy)
    return layers


def _from_v0(layer: V1LayerParameter, where: str) -> V1LayerParameter:
    old = layer.layer
    if old.type not in V0_TYPES:
        raise CaffeFileError(
            f"{where}layer {old.name!r}: type: {old.type!r} is no layer type of the V0 layout"
        )
    result = V1LayerParameter(
        bottom=layer.bottom,
        top=layer.top,
        name=old.name,
        type=V1LayerParameter.LayerType.Value(_V0_TO_V1[old.type]),
    )
    for repeated in ("blobs", "blobs_lr", "weight_decay"):
        getattr(result, repeated).extend(getattr(old, repeated))
    places = _V0_FIELDS.get(old.type, {})
    for found, value in old.ListFields():
        if found.name in _V0_COMMON:
            continue
        if found.name not in places:
            raise CaffeFileError(f"{where}layer {old.name!r}: {found.name}: not a field of type {old.type}")
        message, name = places[found.name]
        target = getattr(result, message)
        if not name:
            target.CopyFrom(value)
        elif found.message_type is not None:
            getattr(target, name).CopyFrom(value)
        elif found.name == "pool":
            target.pool = PoolingParameter.PoolMethod.Value(V0LayerParameter.PoolMethod.Name(value))
        elif is_repeated(target.DESCRIPTOR.fields_by_name[name]):
            getattr(target, name).append(value)
        else:
            setattr(target, name, value)
    return result


def _upgraded_layer(old: V1LayerParameter, where: str) -> LayerParameter:
    if old.type not in V1_TYPES:
        raise CaffeFileError(f"{where}layer {old.name!r}: type: {old.type} is no layer type of the V1 layout")
    layer = LayerParameter(name=old.name, type=V1_TYPES[old.type], bottom=old.bottom, top=old.top)
    for repeated in ("include", "exclude", "loss_weight", "blobs"):
        getattr(layer, repeated).extend(getattr(old, repeated))
    for index in range(
        max(len(old.param), len(old.blobs_lr), len(old.weight_decay), len(old.blob_share_mode))
    ):
        spec = ParamSpec()
        if index < len(old.param):
            spec.name = old.param[index]
        if index < len(old.blob_share_mode):
            spec.share_mode = ParamSpec.DimCheckMode.Name(old.blob_share_mode[index])
        if index < len(old.blobs_lr):
            spec.lr_mult = old.blobs_lr[index]
        if index < len(old.weight_decay):
            spec.decay_mult = old.weight_decay[index]
        layer.param.append(spec)
    for found, value in old.ListFields():
        if found.message_type is not None and not is_repeated(found) and found.name != "layer":
            getattr(layer, found.name).CopyFrom(value)
    return layer


def _move_transformation(layer: LayerParameter) -> None:
    if layer.type not in _TRANSFORMS:
        return
    own = getattr(layer, _TRANSFORMS[layer.type])
    for name in ("scale", "mean_file", "crop_size", "mirror"):
        if own.HasField(name):
            setattr(layer.transform_param, name, getattr(own, name))
            own.ClearField(name)
