"""Verbs that segment images: predict, pseudo-labels, export, check-submission."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from repro import distributed
from repro.cli.shared import (
    Answer,
    ClassifierOption,
    ConfigOption,
    ImageList,
    Overrides,
    WeightsOption,
    answer_masks,
    app,
    images_of,
    is_exported,
    verb,
)
from repro.errors import InputError
from repro.export import PrecisionName, ScriptGraph

if TYPE_CHECKING:
    from repro.config import Config, PredictConfig
from weights_conversion.files import check_target, write_text


@verb(
    app,
    examples=r"""
    repro predict --config dsrg_vgg16_voc \
      --weights iter_20000.safetensors --images photos/ --out masks/

    repro predict --config dsrg_vgg16_voc --weights dsrg.onnx \
      --images photos/ --out masks/ \
      --engine onnx --precision fp16 device=cuda
    """,
)
def predict(
    config: ConfigOption,
    weights: Annotated[
        Path,
        typer.Option(
            help=".safetensors, .caffemodel or any other form that is read; with --engine onnx .onnx, too."
        ),
    ],
    images: Annotated[Path, typer.Option(help="An image or a folder of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the palette PNGs.")],
    overrides: Overrides = None,
    ids: ImageList = None,
    submission: Annotated[
        Path | None,
        typer.Option(help="Pack the masks for VOC's test server, too: a .tar.gz.", show_default=False),
    ] = None,
    engine: Literal["torch", "onnx"] = "torch",
    precision: Annotated[
        PrecisionName | None,
        typer.Option(
            help="Of the onnx engine's layers; the loss of the smaller two is measured and printed.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images of equal size at once, onnx engine.", show_default=False)
    ] = None,
) -> Answer:
    """Segment images with the profile's test protocol; masks that are there already are kept.

    Images that cannot be used do not stop the others: they are listed at the end, and the exit status is 1.
    """
    from repro.config import load_config
    from repro.report.submission import check_ids, write_submission

    distributed.join()
    settings = load_config(config, overrides or [])
    found = images_of(images, ids)
    if submission:
        check_ids(list(found), str(ids or images))
    if engine == "torch":
        if precision or batch_size:
            raise InputError("--precision and --batch-size go with --engine onnx; PyTorch has precision=fast")
        answer = _predict(settings, weights, found, out, settings.inference)
    else:
        answer = _predict_onnx(settings, weights, found, out, precision, batch_size)
    if not submission or answer.status:
        return answer
    write_submission(out, found, submission)
    return replace(answer, data={**answer.data, "submission": submission}, lines=[*answer.lines, submission])


def _predict_onnx(
    settings: Config,
    weights: Path,
    found: dict[str, Path],
    out: Path,
    precision: PrecisionName | None,
    batch_size: int | None,
) -> Answer:
    from repro.export.engine import open_segmenter
    from repro.inference.batch_predict import check_masks_folder, predict_folder
    from repro.run_folder import resolve_device

    check_masks_folder(out, found)  # before the weights are read
    segmenter, described, loss = open_segmenter(
        settings,
        weights,
        settings.inference,
        found,
        device=resolve_device(settings.device),
        precision=precision,
        batch_size=batch_size,
    )
    answer = answer_masks(predict_folder(segmenter, found, out, described=described), out)
    if not loss:
        return answer
    return replace(answer, data={**answer.data, "loss": str(loss)}, lines=[loss, *answer.lines])


@verb(
    app,
    "pseudo-labels",
    examples=r"""
    repro pseudo-labels --config dsrg_vgg16_voc \
      --weights stage1/iter_8000.safetensors --out labels/ \
      dataset.root=VOCdevkit/VOC2012

    repro pseudo-labels --config dsrg_vgg16_voc \
      --weights stage1/iter_8000.safetensors --out labels/ --images photos/
    """,
)
def pseudo_labels(
    config: ConfigOption,
    weights: WeightsOption,
    out: Annotated[Path, typer.Option(help="Folder for the label PNGs.")],
    overrides: Overrides = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images; those of dataset.root by default.")
    ] = None,
) -> Answer:
    """Label the training images with a stage-1 net, for stage 2 to train on."""
    from repro.config import load_config
    from repro.data import find_images
    from repro.data.experiment import open_experiment, open_labelled
    from repro.data.image_list import list_line
    from repro.run_folder import check_no_others

    distributed.join()
    check_no_others(out, "list.txt")
    settings = load_config(config, overrides or [])
    if settings.pseudo_labels is None:
        raise InputError(f"{config}: the profile has no section pseudo_labels")
    labels: Callable[[str], Sequence[int]] | None = None
    if images:
        found = find_images(images)
        if settings.pseudo_labels.use_labels:
            labels = open_labelled(settings).labels.__getitem__
    else:
        experiment = open_experiment(settings)
        found = {name: experiment.image(name) for name in experiment.train}
        if settings.pseudo_labels.use_labels:
            labels = experiment.labels()
    answer = _predict(settings, weights, found, out, settings.pseudo_labels, labels)
    if answer.status:
        return answer
    training_list = out / "list.txt"
    if distributed.is_first():
        write_text(
            training_list, "".join(list_line(path.name, f"{name}.png") for name, path in found.items())
        )
    return replace(
        answer,
        data={**answer.data, "list": training_list},
        lines=[*answer.lines, f"{training_list}: the list for stage 2"],
    )


def _predict(
    settings: Config,
    weights: Path,
    images: dict[str, Path],
    out: Path,
    script: PredictConfig,
    labels: Callable[[str], Sequence[int]] | None = None,
) -> Answer:
    from repro.inference.batch_predict import check_masks_folder, predict_folder
    from repro.inference.predict import TorchSegmenter, describe, load_model
    from repro.run_folder import resolve_device

    check_masks_folder(out, images)  # before the weights are read
    model = load_model(settings, weights, resolve_device(settings.device))
    described = describe(settings, weights, script)
    return answer_masks(
        predict_folder(TorchSegmenter(model, script), images, out, described=described, labels=labels), out
    )


@verb(
    app,
    examples=r"""
    repro export --config dsrg_vgg16_voc \
      --weights iter_20000.safetensors --out dsrg.onnx --images photos/

    repro export --config dsrg_vgg16_voc --net vgg16_cam --graph scores \
      --weights runs/a/stage0/cam/iter_2000.safetensors --out cam.onnx
    """,
)
def export(
    config: ConfigOption,
    weights: WeightsOption,
    out: Annotated[Path, typer.Option(help="The .onnx to write.")],
    overrides: Overrides = None,
    graph: Annotated[
        ScriptGraph,
        typer.Option(
            help="The net; with softmax at image size; or the profile's whole test script but its CRF, from bytes.",
        ),
    ] = "multiscale",
    precision: Annotated[
        PrecisionName, typer.Option(help="Of the layers; the smaller two need --images.")
    ] = "fp32",
    net: ClassifierOption = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Compare with PyTorch on this image or folder of images; may come again."),
    ] = None,
    gt: Annotated[
        Path | None, typer.Option(help="Folder of ground-truth masks of these images, <id>.png.")
    ] = None,
) -> Answer:
    """Write a net as an ONNX file with free batch and image size, and say how it agrees with PyTorch."""
    from repro.config import load_config
    from repro.export.agreement import MASK_BOUND
    from repro.export.engine import export_file
    from repro.run_folder import resolve_device

    if gt and not images:
        raise InputError("--gt: ground truth of which images? --images names them")

    if out.suffix != ".onnx":
        raise InputError(f"--out {out}: expected a name that ends in .onnx")
    check_target(out, weights, *(images or []), of="ONNX net", begins=is_exported)
    settings = load_config(config, overrides or [])
    compared = {path.name: path for source in images or [] for path in images_of(source).values()}
    agreement = export_file(
        settings,
        weights,
        out,
        device=resolve_device(settings.device),
        graph=graph,
        precision=precision,
        classifier=net,
        check=compared,
        truth=gt,
    )
    if not agreement:
        return Answer({"onnx": out}, [out])
    differs = precision == "fp32" and 1 - agreement.pixel_agreement > MASK_BOUND
    if differs:
        print(f"repro: more than {MASK_BOUND:.0e} of the pixels differ", file=sys.stderr)
    data = {"onnx": out, "agreement": json.loads(agreement.as_json())}
    return Answer(data, [out, *agreement.lines()], status=1 if differs else 0)


@verb(
    app,
    "check-submission",
    examples=r"""
    repro check-submission dsrg.tar.gz \
      --list ImageSets/Segmentation/test.txt --images JPEGImages/
    """,
)
def check_submission_archive(
    archive: Annotated[Path, typer.Argument(help="The .tar.gz for VOC's test server.")],
    ids: Annotated[Path, typer.Option("--list", help="VOC 2012's test.txt, or another list of images.")],
    images: Annotated[
        Path | None, typer.Option(help="The test images, to compare sizes with.", show_default=False)
    ] = None,
) -> Answer:
    """Check an archive for VOC's test server: every mask of the test list, indexed, of its image's size."""
    from repro.data import read_id_list
    from repro.report.submission import check_submission

    found = images_of(images, ids) if images else None
    check_submission(archive, read_id_list(ids), found.__getitem__ if found else None)
    told = "complete" if found else "complete; sizes not compared (no --images)"
    return Answer(
        {"archive": archive, "complete": True, "sizes_compared": bool(found)}, [f"{archive}: {told}"]
    )
