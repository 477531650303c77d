"""The prototxts of our networks: for running (deploy) and, with the papers' data and loss layers, for training.

They name layers, blobs and fields as the releases' do, so that a net trained here runs in their Caffe. A train net's
Python layers are the releases' ``pylayers``: SEC's where ``loss.variant`` is ``sec``, else DSRG's. Both have an
``AnnotationLayer``; SEC's reads ``SEC_CUES`` alone and does not mirror, so that other data are read by DSRG's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from repro.config import LossConfig, Stage0Config, Stage1Config, Stage1Data, Stage2Config, Stage2Data
from repro.constants import MEAN_BGR, VOID
from repro.data.cues import PICKLE_SUFFIXES
from repro.data.labels import CLASSIFIER_MEAN_BGR
from repro.errors import InputError
from repro.layers.common import BatchNorm, EltwiseSum, InnerProduct, Scale
from repro.layers.pooling import CaffeAvePool, CaffeMaxPool
from repro.models import CLASSIFIERS, CaffeNet
from repro.models.base import GAUSSIAN_STD
from weights_conversion.prototxt import Identifier, Message

PrototxtFiller = Literal["gaussian", "msra"]
SEC_CUES = "localization_cues/localization_cues.pickle"  # which SEC's AnnotationLayer opens


def message(**fields: Any) -> Message:
    """A message of these fields; lists and tuples are repeated fields, None and empty lists absent ones."""
    return Message(
        {
            name: [*value] if isinstance(value, (list, tuple)) else [value]
            for name, value in fields.items()
            if value is not None and value != []
        }
    )


def deploy_prototxt(
    net: CaffeNet, *, height: int | None = None, width: int | None = None, filler: PrototxtFiller = "gaussian"
) -> Message:
    """The net alone, for one image of ``height`` x ``width`` (by default its ``input_size``), its blob ``images``.

    ``filler`` is named for the layers' weights, as :meth:`CaffeNet.fill` fills them. Dropout of ratio 0, which Caffe
    refuses, is left out.
    """
    shape = message(dim=[1, 3, height or net.input_size, width or net.input_size])
    return message(name=net.name, input="images", input_shape=shape, layer=net_layers(net, filler))


def train_prototxt(
    net: CaffeNet,
    section: Stage0Config | Stage1Config | Stage2Config,
    *,
    filler: PrototxtFiller = "gaussian",
) -> Message:
    """The net between the data and loss layers of a stage, as in the releases' train-s and train-f.prototxt.

    Paths that ``section.data`` leaves open get the releases' names. A classifier takes stage 0's: it reads labels from
    a cue file and minimises ``SigmoidCrossEntropyLoss``; its prototxt was not released, so that only the layers are
    theirs.

    Raises:
        InputError: settings that no layer of the releases has.
    """
    if isinstance(section, Stage0Config) != (net.name in CLASSIFIERS):
        raise InputError(f"{net.name}: classifiers train in stage 0, the other nets in stages 1 and 2")
    if isinstance(section, Stage0Config):
        first, last = _stage0_data(net, section), _stage0_losses(net.scores_blob)
        name = net.name
    elif isinstance(section, Stage1Config):
        sec = section.loss.variant == "sec"
        first = _sec_data(section.data) if sec and _is_secs(section.data) else _stage1_data(section.data)
        last = _stage1_losses(net.scores_blob, section.loss)
        name = "SEC" if sec else "DSRG"
    else:
        first, last = _stage2_data(section.data), _stage2_losses(net.scores_blob, section.data)
        name = "DSRG-retrain"
    return message(name=name, layer=[*first, *net_layers(net, filler), *last])


def net_layers(net: CaffeNet, filler: PrototxtFiller = "gaussian") -> list[Message]:
    """The net's own layers, as messages ``layer`` of a prototxt."""
    multipliers = {group["name"]: (group["lr_mult"], group["decay_mult"]) for group in net.param_groups()}
    layers = []
    for layer in net.layers:
        module = net.get_submodule(layer.name)
        if isinstance(module, nn.Dropout) and module.p == 0:
            continue
        kinds = [kind for kind, _ in module.named_parameters()]
        params = [
            message(lr_mult=_number(lr), decay_mult=_number(decay))
            for lr, decay in (multipliers[f"{layer.name}.{kind}"] for kind in kinds)
        ]
        if all(param == message(lr_mult=1, decay_mult=1) for param in params):
            params = []  # Caffe's defaults
        std = None if filler == "msra" and layer.name not in net.classifiers else GAUSSIAN_STD
        type_, fields = _type_and_fields(module, std)
        layers.append(
            message(name=layer.name, type=type_, bottom=layer.bottoms, top=layer.top, param=params, **fields)
        )
    return layers


def _type_and_fields(module: nn.Module, std: float | None) -> tuple[str, dict[str, Message]]:
    """A layer's type and parameters; ``std`` is that of its gaussian filler, None for msra."""
    if isinstance(module, nn.Conv2d):
        fields = message(
            num_output=module.out_channels,
            kernel_size=module.kernel_size[0],
            pad=module.padding[0],
            dilation=module.dilation[0],
            stride=module.stride[0],
        )
        return "Convolution", {"convolution_param": Message(fields | _fillers(module, std))}
    if isinstance(module, InnerProduct):
        fields = message(num_output=module.out_features)
        return "InnerProduct", {"inner_product_param": Message(fields | _fillers(module, std))}
    if isinstance(module, (CaffeMaxPool, CaffeAvePool)):
        pool = Identifier("MAX" if isinstance(module, CaffeMaxPool) else "AVE")
        kernel, stride, pad = module.kernel_size, module.stride, module.padding
        return "Pooling", {"pooling_param": message(pool=pool, kernel_size=kernel, stride=stride, pad=pad)}
    if isinstance(module, nn.Dropout):
        return "Dropout", {"dropout_param": message(dropout_ratio=_number(module.p))}
    if isinstance(module, BatchNorm):
        return "BatchNorm", {"batch_norm_param": message(use_global_stats=True)}
    if isinstance(module, Scale):
        return "Scale", {"scale_param": message(bias_term=True)}
    if isinstance(module, EltwiseSum):
        return "Eltwise", {"eltwise_param": message(operation=Identifier("SUM"))}
    if isinstance(module, nn.ReLU):
        return "ReLU", {}
    raise TypeError(f"{type(module).__name__} has no form in Caffe")


def _fillers(module: nn.Conv2d | InnerProduct, std: float | None) -> Message:
    weight = message(type="msra") if std is None else message(type="gaussian", std=std)
    if module.bias is None:
        return message(bias_term=False, weight_filler=weight)
    return message(weight_filler=weight, bias_filler=message(type="constant", value=0))


def _number(value: float) -> float:
    """Whole numbers without a point, as prototxts have them."""
    return int(value) if value == int(value) else value


def _python(
    name: str, layer: str, bottoms: list[str], tops: list[str], param_str: str | None = None, **more: Any
) -> Message:
    python = message(module="pylayers", layer=layer, param_str=param_str)
    return message(name=name, type="Python", bottom=bottoms, top=tops, python_param=python, **more)


def _stage1_data(data: Stage1Data, mean: Sequence[float] = MEAN_BGR) -> list[Message]:
    tops = ["labels", "cues", "images"]
    if data.layer == "AnnotationCOCO":
        settings = {
            "source": data.list or "train.txt",
            "root": data.image_root or "",
            "batch_size": data.batch_size,
            "mirror": data.mirror,
            "mean": tuple(float(value) for value in MEAN_BGR),
            "new_size": (data.new_height, data.new_width),
        }
        if data.cues not in (None, data.image_root):
            raise InputError(
                f"data.cues {data.cues}: AnnotationLayerCOCO has one root for images and cues, {data.image_root}"
            )
        return [_python("Annotation", "AnnotationLayerCOCO", [], tops, repr(settings))]
    settings = {"cues": data.cues or "localization_cues.pickle", "mirror": data.mirror}
    return [
        _image_data(data, "images_origin", mean),
        _python(
            "Annotation",
            "AnnotationLayer",
            ["image_ids", "images_origin"],
            tops,
            repr(settings),
            propagate_down=[0, 0],
        ),
    ]


def _is_secs(data: Stage1Data) -> bool:
    """Whether SEC's own layers read these data: its AnnotationLayer knows one cue file and does not mirror."""
    return data.layer == "ImageData" and not data.mirror and data.cues in (None, SEC_CUES)


def _sec_data(data: Stage1Data) -> list[Message]:
    annotation = _python("Annotation", "AnnotationLayer", ["image_ids"], ["labels", "cues"], propagate_down=0)
    return [_image_data(data, "images", MEAN_BGR), annotation]


def _image_data(data: Stage1Data, top: str, mean: Sequence[float]) -> Message:
    images = message(
        root_folder=data.image_root or "images/",
        source=data.list or "input_list.txt",
        batch_size=data.batch_size,
        new_height=data.new_height,
        new_width=data.new_width,
        shuffle=data.shuffle,
    )
    transform = message(mirror=False, mean_value=[_number(float(value)) for value in mean])
    return message(
        name="Input",
        type="ImageData",
        top=[top, "image_ids"],
        transform_param=transform,
        image_data_param=images,
    )


def _stage1_losses(scores: str, loss: LossConfig) -> list[Message]:
    if loss.expand and loss.pooling != "weighted_rank":
        raise InputError(f"loss.pooling {loss.pooling}: no Caffe layer of the releases has it")
    if loss.cues == "grown" and loss.rule != "released":
        raise InputError(f"loss.rule {loss.rule}: the release's DSRGLayer knows its own rule alone")
    probs, log_result = f"{scores}-Softmax", f"{scores}-CRF-log"
    crf_input = probs if loss.variant == "dsrg" else scores
    layers = [_python("Softmax", "SoftmaxLayer", [scores], [probs], propagate_down=1)]
    # DSRG's layer also raises small probabilities in place, for all layers that follow
    if loss.constrain or loss.cues == "grown":
        bottoms = [crf_input, "images"]
        layers.append(_python("CRF", "CRFLayer", bottoms, [log_result], propagate_down=[1, 0]))
    cues = "cues"
    if loss.cues == "grown":
        cues = "cues-new"
        settings = {"th1": loss.theta_b, "th2": loss.theta_f}
        text = repr(settings).replace(": inf", ": float('inf')")
        layers.append(_python("update-seed", "DSRGLayer", ["labels", probs, "cues", "images"], [cues], text))
    if loss.seed != "none":
        seed = "BalancedSeedLossLayer" if loss.seed == "balanced" else "SeedLossLayer"
        layers.append(_loss("loss-Seed", seed, [probs, cues]))
    if loss.expand:
        layers.append(_loss("loss-Expand", "ExpandLossLayer", [probs, "labels"]))
    if loss.constrain:
        layers.append(_loss("loss-Constrain", "ConstrainLossLayer", [probs, log_result]))
    elif loss.cues == "grown":
        layers.append(message(name="silence", type="Silence", bottom=log_result))
    return layers


def _stage0_data(net: CaffeNet, section: Stage0Config) -> list[Message]:
    """Stage 1's layers, whose cue file holds the images' labels too."""
    if section.data.labels and not section.data.labels.endswith(PICKLE_SUFFIXES):
        raise InputError(
            f"data.labels {section.data.labels}: AnnotationLayer reads labels from a cue file alone"
        )
    data = Stage1Data(
        image_root=section.data.image_root,
        list=section.data.list,
        cues=section.data.labels,
        batch_size=section.data.batch_size,
        new_height=net.input_size,
        new_width=net.input_size,
        mirror=section.data.mirror,
        shuffle=section.data.shuffle,
    )
    return _stage1_data(data, CLASSIFIER_MEAN_BGR)


def _stage0_losses(scores: str) -> list[Message]:
    """The labels without background, (N, 1, 1, C), against the scores (N, C): Caffe compares their counts alone."""
    slices = message(axis=3, slice_point=1)
    tops = ["labels-background", "labels-classes"]
    return [
        message(name="labels-slice", type="Slice", bottom="labels", top=tops, slice_param=slices),
        message(name="silence", type="Silence", bottom=["labels-background", "cues"]),
        message(
            name="loss",
            type="SigmoidCrossEntropyLoss",
            bottom=[scores, "labels-classes"],
            top="loss",
            loss_weight=1,
        ),
    ]


def _loss(name: str, layer: str, bottoms: list[str]) -> Message:
    return _python(name, layer, bottoms, [name], loss_weight=1)


def _stage2_data(data: Stage2Data) -> list[Message]:
    if data.rgb:
        raise InputError("data.rgb: the release's ImageSegDataLayer gives BGR alone")
    if data.label_root not in (None, data.image_root):
        raise InputError(
            f"data.label_root {data.label_root}: ImageSegDataLayer has one root for images and labels, "
            f"{data.image_root}"
        )
    settings = {
        "batch_size": data.batch_size,
        "root_folder": data.image_root or "",
        "mean": tuple(float(value) for value in MEAN_BGR),
        "source": data.list or "list.txt",
        "mirror": data.mirror,
        "crop_size": (data.crop_size, data.crop_size),
    }
    python = message(module="layer", layer="ImageSegDataLayer", param_str=repr(settings))
    return [message(name="data", type="Python", top=["images", "label"], python_param=python)]


def _stage2_losses(scores: str, data: Stage2Data) -> list[Message]:
    shrink = message(shrink_factor=data.label_shrink, pad_beg=0, pad_end=0)
    bottoms = [scores, "label_shrink"]
    return [
        message(name="label_shrink", type="Interp", bottom="label", top="label_shrink", interp_param=shrink),
        message(
            name="loss",
            type="SoftmaxWithLoss",
            bottom=bottoms,
            top="loss",
            loss_param=message(ignore_label=VOID),
            loss_weight=1,
        ),
        message(
            name="accuracy",
            type="SegAccuracy",
            bottom=bottoms,
            top="accuracy",
            seg_accuracy_param=message(ignore_label=VOID),
        ),
    ]
