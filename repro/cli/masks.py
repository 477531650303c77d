"""Verbs that segment images: predict, pseudo-labels, export, check-submission."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from repro import distributed
from repro.cli.shared import ConfigOption, DeviceOption, Overrides, app, images_of, load, report_masks, say
from repro.errors import InputError
from repro.export import PrecisionName, ScriptGraph

if TYPE_CHECKING:
    from repro.config import Config, PredictConfig
from weights_conversion.files import write_text


@app.command(
    epilog="Example: repro predict --config dsrg_vgg16_voc --weights iter_20000.safetensors "
    "--images photos/ --out masks/\n\nrepro predict … --engine onnx --device cuda --precision fp16"
)
def predict(
    config: ConfigOption,
    weights: Annotated[
        Path, typer.Option(help=".safetensors, .caffemodel or .caffemodel.h5; with --engine onnx .onnx, too.")
    ],
    images: Annotated[Path, typer.Option(help="An image or a folder of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the palette PNGs.")],
    overrides: Overrides = None,
    ids: Annotated[Path | None, typer.Option("--list", help="Only the images of this list.")] = None,
    submission: Annotated[
        Path | None,
        typer.Option(help="Pack the masks for VOC's test server, too: a .tar.gz.", show_default=False),
    ] = None,
    device: DeviceOption = None,
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
) -> None:
    """Segment images with the profile's test protocol; masks that are there already are kept.

    Images that cannot be used do not stop the others: they are listed at the end, and the exit status is 1.
    """
    from repro.report.submission import check_ids, write_submission

    distributed.join()
    settings = load(config, overrides, device, None)
    found = images_of(images, ids)
    if submission:
        check_ids(list(found), str(ids or images))
    if engine == "torch":
        if precision or batch_size:
            raise InputError("--precision and --batch-size go with --engine onnx; PyTorch has precision=fast")
        _predict(settings, weights, found, out, settings.inference)
    else:
        _predict_onnx(settings, weights, found, out, precision, batch_size)
    if submission:
        write_submission(out, found, submission)
        say(submission)


def _predict_onnx(
    settings: Config,
    weights: Path,
    found: dict[str, Path],
    out: Path,
    precision: PrecisionName | None,
    batch_size: int | None,
) -> None:
    from repro.export.engine import open_segmenter
    from repro.inference.batch_predict import predict_folder
    from repro.run_folder import resolve_device

    segmenter, described, loss = open_segmenter(
        settings,
        weights,
        settings.inference,
        found,
        device=resolve_device(settings.device),
        precision=precision,
        batch_size=batch_size,
    )
    if loss:
        say(loss)
    report_masks(predict_folder(segmenter, found, out, described=described), out)


@app.command(
    "pseudo-labels",
    epilog="Example: repro pseudo-labels --config dsrg_vgg16_voc --weights stage1/iter_8000.safetensors "
    "--out labels/ dataset.root=VOCdevkit/VOC2012\n\nrepro pseudo-labels … --images photos/",
)
def pseudo_labels(
    config: ConfigOption,
    weights: Annotated[Path, typer.Option(help="Stage 1's weights.")],
    out: Annotated[Path, typer.Option(help="Folder for the label PNGs.")],
    overrides: Overrides = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images; those of dataset.root by default.")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Label the training images with a stage-1 net, for stage 2 to train on."""
    from repro.data import find_images
    from repro.data.experiment import open_experiment, open_labelled
    from repro.data.image_list import list_line

    distributed.join()
    settings = load(config, overrides, device, None)
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
    _predict(settings, weights, found, out, settings.pseudo_labels, labels)
    if distributed.is_first():
        write_text(
            out / "list.txt", "".join(list_line(path.name, f"{name}.png") for name, path in found.items())
        )
    say(f"{out / 'list.txt'}: the list for stage 2")


def _predict(
    settings: Config,
    weights: Path,
    images: dict[str, Path],
    out: Path,
    script: PredictConfig,
    labels: Callable[[str], Sequence[int]] | None = None,
) -> None:
    from repro.inference.batch_predict import predict_folder
    from repro.inference.predict import TorchSegmenter, describe, load_model
    from repro.run_folder import resolve_device

    model = load_model(settings, weights, resolve_device(settings.device))
    described = describe(settings, weights, script)
    report_masks(
        predict_folder(TorchSegmenter(model, script), images, out, described=described, labels=labels), out
    )


@app.command(
    epilog="Example: repro export --config dsrg_vgg16_voc --weights iter_20000.safetensors --out dsrg.onnx "
    "--check photos/"
)
def export(
    config: ConfigOption,
    weights: Annotated[Path, typer.Option(help=".safetensors, .caffemodel or .caffemodel.h5")],
    out: Annotated[Path, typer.Option(help="The .onnx to write.")],
    overrides: Overrides = None,
    graph: Annotated[
        ScriptGraph,
        typer.Option(
            help="The net; with softmax at image size; or the profile's whole test script but its CRF, from bytes.",
        ),
    ] = "multiscale",
    precision: Annotated[
        PrecisionName, typer.Option(help="Of the layers; the smaller two need --check.")
    ] = "fp32",
    classifier: Annotated[
        str | None,
        typer.Option(
            help="vgg16_cam or vgg16_bg, the nets of the cues, instead of the profile's; --graph scores.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(help="Compare with PyTorch on this image or folder of images; may come again."),
    ] = None,
    gt: Annotated[
        Path | None, typer.Option(help="Folder of ground-truth masks of these images, <id>.png.")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Write a net as an ONNX file with free batch and image size, and say how it agrees with PyTorch."""
    from repro.export.agreement import MASK_BOUND
    from repro.export.engine import export_file
    from repro.run_folder import resolve_device

    if gt and not check:
        raise InputError("--gt: ground truth of which images? --check names them")
    settings = load(config, overrides, device, None)
    images = {
        path.name: path for source in check or [] for path in images_of(source, None, "--check").values()
    }
    agreement = export_file(
        settings,
        weights,
        out,
        device=resolve_device(settings.device),
        graph=graph,
        precision=precision,
        classifier=classifier,
        check=images,
        truth=gt,
    )
    say(out)
    if agreement:
        say(*agreement.lines())
        if precision == "fp32" and 1 - agreement.pixel_agreement > MASK_BOUND:
            print(f"repro: more than {MASK_BOUND:.0e} of the pixels differ", file=sys.stderr)
            raise typer.Exit(1)


@app.command(
    "check-submission",
    epilog="Example: repro check-submission dsrg.tar.gz --list ImageSets/Segmentation/test.txt --images JPEGImages/",
)
def check_submission_archive(
    archive: Annotated[Path, typer.Argument(help="The .tar.gz for VOC's test server.")],
    ids: Annotated[Path, typer.Option("--list", help="VOC 2012's test.txt, or another list of images.")],
    images: Annotated[
        Path | None, typer.Option(help="The test images, to compare sizes with.", show_default=False)
    ] = None,
) -> None:
    """Check an archive for VOC's test server: every mask of the test list, indexed, of its image's size."""
    from repro.data import read_id_list
    from repro.report.submission import check_submission

    found = images_of(images, ids) if images else None
    check_submission(archive, read_id_list(ids), found.__getitem__ if found else None)
    say(f"{archive}: {'complete' if found else 'complete; sizes not compared (no --images)'}")
