"""The prototxts of our nets: for running (deploy) and, with the papers' data and loss layers, for training.

They name layers, blobs and fields as the releases' do, so that a net trained here runs in their Caffe. A train net's
Python layers are the releases' ``pylayers``: SEC's where ``loss.variant`` is ``sec``, else DSRG's. Both have an
``AnnotationLayer``; SEC's reads ``SEC_CUES`` alone and does not mirror, so that other data are read by DSRG's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from repro.config import Config, LossConfig, Stage0Config, Stage1Config, Stage1Data, Stage2Config, Stage2Data
from repro.constants import MEAN_BGR
from repro.data.cues import PICKLE_SUFFIXES
from repro.data.labels import CLASSIFIER_MEAN_BGR
from repro.data.release_layers import SEC_CUES
from repro.errors import InputError, chosen
from repro.models import CLASSIFIERS, CaffeNet
from repro.models.loss_tails import classifier_losses, python_layer, stage1_losses, stage2_losses
from weights_conversion.caffe_pb2 import LayerParameter, NetParameter, ParamSpec
from weights_conversion.lift import lower
from weights_conversion.prototxt import Message


def prototxt_of(config: Config, stage: int | None = None, classifier: str | None = None) -> Message:
    """The deploy prototxt of a profile's net, or the train prototxt of one of its stages.

    Args:
        stage: 0, 1 or 2; the deploy net without.
        classifier: one of ``CLASSIFIERS``, which train in stage 0, in place of the profile's net.

    Raises:
        InputError: no such net or section, or settings that no layer of the releases has.
    """
    if classifier is not None:
        chosen("--net", classifier, CLASSIFIERS)
    if stage == 0 and classifier is None:
        raise InputError(f"--stage 0: trains the classifiers; --net says which, {' or '.join(CLASSIFIERS)}")
    net = config.build_net(classifier)
    if stage is None:
        return deploy_prototxt(net)
    section = (config.stage0, config.stage1, config.stage2)[stage]
    if section is None:
        raise InputError(f"{config.name}: has no section stage{stage}")
    return train_prototxt(net, section)


def deploy_prototxt(net: CaffeNet) -> Message:
    """The net alone, for one image. Dropout of ratio 0, which Caffe refuses, is left out."""
    parameter = NetParameter(name=net.name, input=net.parameter.input, input_shape=net.parameter.input_shape)
    parameter.layer.extend(net_layers(net))
    return lower(parameter)


def train_prototxt(net: CaffeNet, section: Stage0Config | Stage1Config | Stage2Config) -> Message:
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
        first, last = _stage0_data(net, section), [*_stage0_labels(), *classifier_losses(net.scores_blob)]
        name = net.name
    elif isinstance(section, Stage1Config):
        sec = section.loss.variant == "sec"
        first = _sec_data(section.data) if sec and _is_secs(section.data) else _stage1_data(section.data)
        _check_losses(section.loss)
        last = stage1_losses(net.scores_blob, **section.loss.model_dump())
        name = "SEC" if sec else "DSRG"
    else:
        first = _stage2_data(section.data)
        last = stage2_losses(net.scores_blob, label_shrink=section.data.label_shrink)
        name = "DSRG-retrain"
    return lower(NetParameter(name=name, layer=[*first, *net_layers(net), *last]))


def net_layers(net: CaffeNet) -> Iterable[LayerParameter]:
    """The net's own layers, with the multipliers in force."""
    multipliers = {group["name"]: (group["lr_mult"], group["decay_mult"]) for group in net.param_groups()}
    for layer in net.parameter.layer:
        if layer.type == "Dropout" and layer.dropout_param.dropout_ratio == 0:
            continue
        copy = LayerParameter()
        copy.CopyFrom(layer)
        copy.ClearField("param")
        pairs = [multipliers[f"{layer.name}.{kind}"] for kind in net[layer.name].fillers]
        if any(pair != (1, 1) for pair in pairs):
            copy.param.extend(ParamSpec(lr_mult=lr, decay_mult=decay) for lr, decay in pairs)
        yield copy


def _stage1_data(data: Stage1Data, mean: Sequence[float] = MEAN_BGR) -> list[LayerParameter]:
    tops = ["labels", "cues", "images"]
    if data.layer == "AnnotationCOCO":
        settings: dict[str, Any] = {
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
        return [python_layer("Annotation", "AnnotationLayerCOCO", [], tops, settings)]
    settings = {"cues": data.cues or "localization_cues.pickle", "mirror": data.mirror}
    bottoms = ["image_ids", "images_origin"]
    annotation = python_layer(
        "Annotation", "AnnotationLayer", bottoms, tops, settings, propagate_down=[False, False]
    )
    return [_image_data(data, "images_origin", mean), annotation]


def _is_secs(data: Stage1Data) -> bool:
    """Whether SEC's own layers read these data: its AnnotationLayer knows one cue file and does not mirror."""
    return data.layer == "ImageData" and not data.mirror and data.cues in (None, SEC_CUES)


def _sec_data(data: Stage1Data) -> list[LayerParameter]:
    annotation = python_layer(
        "Annotation", "AnnotationLayer", ["image_ids"], ["labels", "cues"], propagate_down=[False]
    )
    return [_image_data(data, "images", MEAN_BGR), annotation]


def _image_data(data: Stage1Data, top: str, mean: Sequence[float]) -> LayerParameter:
    return LayerParameter(
        name="Input",
        type="ImageData",
        top=[top, "image_ids"],
        transform_param={"mirror": False, "mean_value": mean},
        image_data_param={
            "root_folder": data.image_root or "images/",
            "source": data.list or "input_list.txt",
            "batch_size": data.batch_size,
            "new_height": data.new_height,
            "new_width": data.new_width,
            "shuffle": data.shuffle,
        },
    )


def _check_losses(loss: LossConfig) -> None:
    if loss.expand and loss.pooling != "weighted_rank":
        raise InputError(f"loss.pooling {loss.pooling}: no Caffe layer of the releases has it")
    if loss.cues == "grown" and loss.rule != "released":
        raise InputError(f"loss.rule {loss.rule}: the release's DSRGLayer knows its own rule alone")


def _stage0_data(net: CaffeNet, section: Stage0Config) -> list[LayerParameter]:
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


def _stage0_labels() -> list[LayerParameter]:
    """The labels without background, (N, 1, 1, C), against the scores (N, C): Caffe compares their counts alone."""
    tops = ["labels-background", "labels-classes"]
    slices = {"axis": 3, "slice_point": [1]}
    return [
        LayerParameter(name="labels-slice", type="Slice", bottom=["labels"], top=tops, slice_param=slices),
        LayerParameter(name="silence", type="Silence", bottom=["labels-background", "cues"]),
    ]


def _stage2_data(data: Stage2Data) -> list[LayerParameter]:
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
    return [python_layer("data", "ImageSegDataLayer", [], ["images", "label"], settings, module="layer")]
