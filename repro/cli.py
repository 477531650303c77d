"""The command line: each verb parses, calls one function and prints."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from tqdm import tqdm

from repro import ranks
from repro.bench import bench as run_bench
from repro.config import Config, PredictConfig, load_config, profile_names
from repro.data import CocoInstances, VocLayout, convert_cues, find_images, read_id_list
from repro.data.fetch import Fetcher
from repro.data.labels import read_labels, write_labels
from repro.data.mini import build_mini
from repro.data.sbd import build_train_aug, find_sbd
from repro.data.verify import verify
from repro.errors import InputError, StoppedError
from repro.export import GraphName, PrecisionName
from repro.files import write_text
from repro.models import CLASSIFIERS, CaffeNet, build_model
from repro.report import judge_runs, report_all, report_runs
from repro.report.experiments import experiments
from repro.report.submission import check_ids, check_submission, write_submission
from repro.stages.caffe_solver import load_solver
from repro.stages.classifier import SEED_CLASSIFIERS, classifier_weights, train_classifier
from repro.stages.datasets import open_experiment, open_labelled
from repro.stages.evaluate import evaluate_folder
from repro.stages.folder import FolderResult, predict_folder
from repro.stages.forecast import forecast
from repro.stages.infer import TorchSegmenter, describe, load_model
from repro.stages.plan import plan
from repro.stages.reproduce import reproduce as reproduce_runs
from repro.stages.runs import Run, resolve_device, write_json
from repro.stages.seeds import make_cues, score_seeds
from repro.stages.train import train as train_stage
from weights_conversion import (
    STATE_ENDINGS,
    Message,
    caffe_layers,
    convert_solverstate,
    convert_weights,
    deploy_prototxt,
    describe_file,
    train_prototxt,
    write_prototxt,
)
from weights_conversion.importer import TOLERANCE, check_conversion, random_images, read_images

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Caffe-faithful reproduction of SEC and DSRG, from image-level labels to the papers' tables.",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build or convert data.")
app.add_typer(data_app, name="data")
seeds_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Localization cues from image-level labels: train two classifiers, make the cues, score them.",
)
app.add_typer(seeds_app, name="seeds")

ConfigOption = Annotated[
    str, typer.Option("--config", help=f"A profile ({', '.join(profile_names())}) or the path of one.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides, e.g. stage1.solver.max_iter=100", show_default=False
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default=False)]
SeedOption = Annotated[int | None, typer.Option(help="Random seed.", show_default=False)]


@app.command(
    epilog="Example: repro train --stage 1 --config dsrg_vgg16_voc data.image_root=JPEGImages/ "
    "data.list=input_list.txt data.cues=localization_cues.pickle init.weights=vgg16_20M.caffemodel output=runs/a    "
    "repro train --solver solver-s.prototxt init.weights=vgg16_20M_mc.caffemodel output=runs/b"
)
def train(
    overrides: Overrides = None,
    config: Annotated[
        str | None,
        typer.Option(
            help=f"A profile ({', '.join(profile_names())}) or the path of one.", show_default=False
        ),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help="Instead of a profile: a Caffe solver prototxt of one of our nets.", show_default=False
        ),
    ] = None,
    stage: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            help="1: on cues. 2: on pseudo labels.",
            show_default="1, or what the solver's net trains",
        ),
    ] = None,
    device: DeviceOption = None,
    seed: SeedOption = None,
) -> None:
    """Train one stage; an unfinished run goes on from its newest snapshot.

    Under torchrun several processes share each mini-batch (docs/clusters.md).
    """
    ranks.join()
    if (config is None) == (solver is None):
        raise InputError("train: give either --config or --solver")
    if solver is not None:
        run = load_solver(solver, _overrides(overrides, device, seed))
        if stage not in (None, run.stage):
            raise InputError(f"{solver}: its net is of stage {run.stage}, not of --stage {stage}")
        for note in run.notes:
            typer.echo(note, err=True)
        settings, stage = run.config, run.stage
    else:
        stage = stage or 1
        settings = _load(str(config), overrides, device, seed, stages=(f"stage{stage}",))
    weights = train_stage(settings, stage, Run(settings, resolve_device(settings.device)))
    _say(f"{weights}\n{weights.parent / 'log.csv'}")


@app.command(
    epilog="Example: repro predict --config dsrg_vgg16_voc --weights iter_20000.safetensors "
    "--images photos/ --out masks/    repro predict … --engine onnx --device cuda --precision fp16"
)
def predict(
    config: ConfigOption,
    weights: Annotated[
        Path, typer.Option(help=".safetensors, .caffemodel or .caffemodel.h5; with --engine onnx .onnx, too.")
    ],
    images: Annotated[Path, typer.Option(help="An image or a folder of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the palette PNGs.")],
    overrides: Overrides = None,
    ids: Annotated[Path | None, typer.Option("--list", help="Only the ids of this list, one a line.")] = None,
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
    ranks.join()
    settings = _load(config, overrides, device, None)
    found = _images(images, ids)
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
        typer.echo(submission)


def _predict_onnx(
    settings: Config,
    weights: Path,
    found: dict[str, Path],
    out: Path,
    precision: PrecisionName | None,
    batch_size: int | None,
) -> None:
    from repro.export.engine import open_segmenter  # onnx and onnxruntime are extras

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
        typer.echo(loss)
    _report(predict_folder(segmenter, found, out, described=described), out)


@app.command(
    "check-submission",
    epilog="Example: repro check-submission dsrg.tar.gz --list ImageSets/Segmentation/test.txt --images JPEGImages/",
)
def check_submission_archive(
    archive: Annotated[Path, typer.Argument(help="The .tar.gz for VOC's test server.")],
    ids: Annotated[Path, typer.Option("--list", help="VOC 2012's test.txt.")],
    images: Annotated[
        Path | None, typer.Option(help="The test images, to compare sizes with.", show_default=False)
    ] = None,
) -> None:
    """Check an archive for VOC's test server: every mask of the test list, indexed, of its image's size."""
    found = _images(images, ids) if images else None
    check_submission(archive, read_id_list(ids), found.__getitem__ if found else None)
    typer.echo(f"{archive}: {'complete' if found else 'complete; sizes not compared (no --images)'}")


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
        GraphName,
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
            help=f"{' or '.join(CLASSIFIERS)}, the nets of the cues, instead of the profile's; --graph scores.",
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

    if gt and not check:
        raise InputError("--gt: ground truth of which images? --check names them")
    settings = _load(config, overrides, device, None)
    images = {path.name: path for source in check or [] for path in _images(source, None, "--check").values()}
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
    typer.echo(out)
    if agreement:
        typer.echo(agreement.table())
        if precision == "fp32" and 1 - agreement.pixel_agreement > MASK_BOUND:
            print(f"repro: more than {MASK_BOUND:.0e} of the pixels differ", file=sys.stderr)
            raise typer.Exit(1)


@app.command(
    "pseudo-labels",
    epilog="Example: repro pseudo-labels --config dsrg_vgg16_voc --weights stage1/iter_8000.safetensors "
    "--out labels/ dataset.root=VOCdevkit/VOC2012        (or --images photos/ instead of dataset.root)",
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
    ranks.join()
    settings = _load(config, overrides, device, None)
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
    if ranks.is_first():
        write_text(out / "list.txt", "".join(f"{path.name} {name}.png\n" for name, path in found.items()))
    _say(f"{out / 'list.txt'}: the list for stage 2")


@app.command(
    epilog="Example: repro evaluate --pred masks/ --gt VOC2012/SegmentationClass --list val.txt --out scores.json"
)
def evaluate(
    pred: Annotated[Path, typer.Option(help="Folder of predicted masks, <id>.png.")],
    gt: Annotated[Path, typer.Option(help="Folder of ground-truth masks, <id>.png (indices; 255 is void).")],
    ids: Annotated[Path, typer.Option("--list", help="Ids, one a line.")],
    num_classes: Annotated[int, typer.Option(min=2, max=255, help="Classes, background included.")] = 21,
    out: Annotated[Path | None, typer.Option(help="Write the scores as JSON, too.")] = None,
) -> None:
    """Score masks: mean IoU by both averaging rules, pixel accuracy, every class."""
    ranks.join()
    names = read_id_list(ids)
    scores = evaluate_folder(pred, [gt / f"{name}.png" for name in names], names, num_classes)
    if not ranks.is_first():
        return
    typer.echo(f"{'images':<28}{scores['images']}")
    for rule, value in scores["mean_iou"].items():
        typer.echo(f"{f'mean IoU, rule {rule}':<28}{100 * value:.2f}")
    typer.echo(f"{'pixel accuracy':<28}{100 * scores['pixel_accuracy']:.2f}")
    for index, value in enumerate(scores["per_class_iou"]):
        typer.echo(f"{f'class {index}':<28}{'-' if value is None else f'{100 * value:.2f}'}")
    if out:
        write_json(out, scores)


@app.command(
    epilog="Example: repro reproduce --config mini --seeds 0,1,2    "
    "repro reproduce --config dsrg_vgg16_voc dataset.root=VOCdevkit/VOC2012 stage1.init.weights=vgg16_20M.caffemodel"
    "    repro reproduce --experiment table4 --dry-run dataset.root=VOCdevkit/VOC2012"
)
def reproduce(
    config: Annotated[
        str | None, typer.Option(help="A profile; with --experiment each run's own by default.")
    ] = None,
    overrides: Overrides = None,
    experiment: Annotated[
        str,
        typer.Option(
            help=f"Tables of the papers, e.g. table2,table4: {', '.join(experiments().experiments)}; all."
        ),
    ] = "",
    original: Annotated[
        list[str] | None, typer.Option(help="ROW=FILE: score these weights as the row's, train nothing.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Several seeds, e.g. 0,1,2: a run each.")] = "",
    device: DeviceOption = None,
    seed: SeedOption = None,
    dry_run: Annotated[
        bool, typer.Option(help="Only say what would be done, how long and how large.")
    ] = False,
) -> None:
    """Run whole experiments and write their results folder; what is done already is skipped."""
    ranks.join()
    runs = plan(
        config,
        _overrides(overrides, device, seed),
        names=[name.strip() for name in experiment.split(",") if name.strip()],
        originals=original or [],
        seeds=_seeds(seeds),
    )
    if dry_run:
        typer.echo(forecast(runs))
        return
    for folder in reproduce_runs(runs):
        text, _, _ = (
            (folder / "README.md").read_text(encoding="utf-8").partition("\n![")
        )  # figures say nothing here
        typer.echo(f"{text}\n{folder / 'index.html'}")


@app.command(
    epilog="Example: repro tables        repro tables results/runs/a results/runs/b --out results/ab"
)
def tables(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; all of results/runs by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results of the runs named.")] = None,
) -> None:
    """Write the results folder of finished runs again: tables, figures, page and verdict.

    Without arguments: of every experiment in results/runs, each in results/<name>.
    """
    if bool(runs) != bool(out):
        raise InputError("tables: run folders and --out go together; give both or none")
    folders = [report_runs(runs, out)] if runs and out else report_all(Path("results/runs"), Path("results"))
    for folder in folders:
        typer.echo(folder)


@app.command(
    "check-paper", epilog="Example: repro check-paper        repro check-paper results/runs/a results/runs/b"
)
def check_paper(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; the papers' own in results/runs by default.")
    ] = None,
) -> None:
    """Compare finished runs with the published values; exit status 1 if one is missed by more than its tolerance."""
    verdict = judge_runs(runs, Path("results/runs"))
    for judgement in verdict.judgements:
        typer.echo(judgement.line())
    typer.echo(verdict.sentence())
    if verdict.of("missed"):
        raise typer.Exit(1)


@app.command(
    epilog="Example: repro bench --config dsrg_vgg16_voc precision=fast data.batch_size=10 --device cuda"
)
def bench(
    config: ConfigOption = "dsrg_vgg16_voc",
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures and the table.")] = Path("results/bench"),
    seconds: Annotated[float, typer.Option(min=0.01, help="What each part may take.")] = 2.0,
    device: DeviceOption = None,
) -> None:
    """Time each part of a stage-1 iteration and of a prediction, beside what the originals computed with."""
    settings = _load(config, overrides, device, None, stages=("stage1",))
    figures, table = run_bench(settings, out, seconds=seconds)
    typer.echo(table.read_text(encoding="utf-8"))
    typer.echo(f"{figures}\n{table}")


@app.command(
    epilog="Example: repro convert vgg16_20M.caffemodel vgg16_20M_mc.safetensors --to vgg16_aspp    "
    "repro convert runs/a/stage1/iter_4000.state iter_4000.solverstate --to vgg16_aspp    "
    "repro convert a.safetensors a.caffemodel --to vgg16_aspp --prototxt a.prototxt --check a.prototxt"
)
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Weights: .caffemodel, .caffemodel.h5, .safetensors, or torchvision's or SSD's VGG16 .pth. "
            "Or a state: .solverstate, .solverstate.h5, or the .state of a snapshot."
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            help="By its ending: the same kinds but .pth and .state. A snapshot becomes a Caffe pair."
        ),
    ],
    to: Annotated[
        str | None, typer.Option(help="The net that the weights are for.", show_default=False)
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Outputs of the net.", show_default="21; 20 for classifiers")
    ] = None,
    width_divisor: Annotated[int, typer.Option(help="Divides the width of every hidden layer.")] = 1,
    spread_branches: Annotated[
        bool, typer.Option(help="Copy single fc6, fc7 into each ASPP branch, as vgg16_20M_mc holds them.")
    ] = True,
    input_size: Annotated[int, typer.Option(help="Side of the images: classifiers are made for one.")] = 321,
    seed: Annotated[int, typer.Option(help="Of the filler of layers that the source lacks.")] = 0,
    deploy_to: Annotated[
        Path | None,
        typer.Option("--prototxt", help="Write the net's deploy prototxt here.", show_default=False),
    ] = None,
    train_to: Annotated[
        Path | None,
        typer.Option(
            "--train-prototxt", help="Write a train prototxt here, by --config.", show_default=False
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="The profile of --train-prototxt.", show_default=False)
    ] = None,
    stage: Annotated[int, typer.Option(min=0, max=2, help="Its stage; classifiers train in stage 0.")] = 1,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="PROTOTXT",
            help="Compare every blob with OpenCV's import of this deploy prototxt; status 1 if one differs.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="An image or a folder to check on, beside noise.", show_default=False),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Of each blob's largest value.")] = TOLERANCE,
) -> None:
    """Carry weights from one kind of file to another, by layer name, and say what was done with each layer."""
    model = None
    if to is not None:
        torch.manual_seed(seed)  # a built model is filled; once more would take a tenth of the time of it all
        model = build_model(to, num_classes=num_classes, width_divisor=width_divisor, input_size=input_size)
    if config and not train_to:
        raise InputError(f"--config {config}: goes with --train-prototxt")
    if images and not check:
        raise InputError(f"--images {images}: goes with --check")
    texts = _prototxts(model, deploy_to, train_to, config, stage)
    if target.name.endswith(STATE_ENDINGS):
        if check:
            raise InputError(f"{target}: --check goes with weights, not with a solver state")
        written = convert_solverstate(source, target, model)
    elif model is None:
        raise InputError(f"{source}: say with --to which net the weights are for")
    else:
        outputs = caffe_layers(model)[model.classifiers[-1]].tensors["weight"].shape[0]
        net = {"name": to, "num_classes": outputs, "width_divisor": width_divisor, "filler_seed": seed}
        if model.fixed_size:
            net["input_size"] = input_size
        report = convert_weights(model, source, target, net=net, spread_branches=spread_branches)
        typer.echo(report)
        written = [target]
    for path, text in texts.items():
        write_prototxt(text, path)
    for path in (*written, *texts):
        typer.echo(path)
    if check and model is not None:
        blobs = random_images(model) | (read_images(model, _images(images, None)) if images else {})
        found = check_conversion(model, report, check, blobs, tolerance=tolerance)
        typer.echo("\n".join(found.lines()))
        if found.first_over:
            raise typer.Exit(1)


def _prototxts(
    model: CaffeNet | None, deploy: Path | None, train: Path | None, profile: str | None, stage: int
) -> dict[Path, Message]:
    texts = {}
    for path in (deploy, train):
        if path and model is None:
            raise InputError(f"{path}: say with --to of which net")
    if deploy and model:
        texts[deploy] = deploy_prototxt(model)
    if train and model:
        if profile is None:
            raise InputError(f"{train}: say with --config by which profile the net trains")
        settings = load_config(profile)
        section = (settings.stage0, settings.stage1, settings.stage2)[stage]
        if section is None:
            raise InputError(f"{profile}: has no section stage{stage}")
        texts[train] = train_prototxt(model, section)
    return texts


@app.command(epilog="Example: repro inspect vgg16_20M.caffemodel    repro inspect train-s.prototxt")
def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="Weights or solver state: Caffe's, .safetensors, .pth, or a snapshot's .state. "
            "Or a prototxt, of a net or a solver."
        ),
    ],
) -> None:
    """List what a file holds: layers, shapes, parameters, ranges of values, and where converted weights came from.

    Of a net's prototxt: its layers with the shapes of all blobs, derived by Caffe's rules.
    """
    for line in describe_file(file):
        typer.echo(line)


@seeds_app.command(
    "train",
    epilog="Example: repro seeds train --config dsrg_vgg16_voc data.image_root=photos/ data.labels=labels.csv "
    "init.weights=vgg16_20M.caffemodel output=runs/a",
)
def seeds_train(
    config: ConfigOption,
    overrides: Overrides = None,
    net: Annotated[str, typer.Option(help="cam (foreground), bg (background) or both.")] = "both",
    device: DeviceOption = None,
    seed: SeedOption = None,
) -> None:
    """Train the classifiers that cues are made of, on image-level labels; unfinished ones go on."""
    ranks.join()
    settings = _load(config, overrides, device, seed, stages=("stage0",))
    for one in SEED_CLASSIFIERS if net == "both" else (net,):
        weights = train_classifier(settings, one, Run(settings, resolve_device(settings.device)))
        _say(str(weights))


@seeds_app.command(
    "make",
    epilog="Example: repro seeds make --config dsrg_vgg16_voc data.image_root=photos/ data.labels=labels.csv "
    "output=runs/a        (with cues.saliency=maps/ cues.merge=background_first: DSRG's kind)",
)
def seeds_make(
    config: ConfigOption,
    overrides: Overrides = None,
    cam: Annotated[Path | None, typer.Option(help="Weights; those of the run by default.")] = None,
    bg: Annotated[Path | None, typer.Option(help="Weights; those of the run by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; stage0/cues of the run by default.")] = None,
    pickled: Annotated[
        bool, typer.Option("--pickle", help="Also write the originals' localization_cues.pickle.")
    ] = False,
    overlays: Annotated[bool, typer.Option(help="Also draw the cues over the images, to look at.")] = False,
    device: DeviceOption = None,
) -> None:
    """Make cues of the labelled images; those that are there already are kept."""
    settings = _load(config, overrides, device, None, stages=("stage0",))
    weights = classifier_weights(settings) | {
        net: path for net, path in (("cam", cam), ("bg", bg)) if path is not None
    }
    made = make_cues(
        settings,
        weights,
        out or settings.run_dir / "stage0" / "cues",
        resolve_device(settings.device),
        pickled=pickled,
        overlays=overlays,
    )
    typer.echo(f"{made.cues}\n{made.input_list}\n{made.done} images done now")


@seeds_app.command(
    "score",
    epilog="Example: repro seeds score --config dsrg_vgg16_voc --cues localization_cues.pickle --list input_list.txt "
    "--masks VOC2012/SegmentationClassAug --ids train_aug.txt",
)
def seeds_score(
    config: ConfigOption,
    cues: Annotated[Path, typer.Option(help="A cue file, or a folder of cue PNGs.")],
    masks: Annotated[Path, typer.Option(help="Folder of ground-truth masks, <image>.png (255 is void).")],
    overrides: Overrides = None,
    input_list: Annotated[
        Path | None, typer.Option("--list", help="The cue file's list, lines 'image index'.")
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="Only the images of this list, one a line.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON, too.")] = None,
) -> None:
    """Precision, recall and IoU of cues against masks, and the share of the pixels they label."""
    settings = _load(config, overrides, None, None, stages=())
    names = read_id_list(ids) if ids else None
    figures = score_seeds(settings, cues, masks, input_list=input_list, ids=names)
    typer.echo(f"{'':<24}{'precision':>10}{'recall':>10}{'IoU':>10}")
    rows = [("mean", figures), ("mean, released script", figures["released"])]
    for name, row in [*rows, *zip(settings.dataset.classes, figures["per_class"], strict=True)]:
        cells = ("-" if row is None else f"{100 * row[key]:.2f}" for key in ("precision", "recall", "iou"))
        typer.echo(f"{name:<24}" + "".join(f"{cell:>10}" for cell in cells))
    typer.echo(f"{figures['images']} images, {100 * figures['labelled']:.1f} % of the pixels labelled")
    if out:
        write_json(out, figures)


@data_app.command(
    "fetch",
    epilog="Example: repro data fetch --voc-root data/VOCdevkit/VOC2012        repro data fetch --from /mnt/archives",
)
def data_fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Sources of the catalogue; those that the experiments need by default."),
    ] = None,
    voc_root: Annotated[
        Path,
        typer.Option(
            help="The VOC tree: one of your own, or where to make it. The rest goes beside VOCdevkit."
        ),
    ] = Path("data/VOCdevkit/VOC2012"),
    own: Annotated[
        Path | None, typer.Option("--from", help="Folder with your own copies; nothing is downloaded.")
    ] = None,
    catalogue: Annotated[
        Path | None, typer.Option(help="Another sources.yaml, with your own mirrors.")
    ] = None,
    keep_archives: Annotated[bool, typer.Option(help="Keep archives once they are unpacked.")] = False,
    show: Annotated[
        bool, typer.Option("--list", help="Only list the sources and what is there of them.")
    ] = False,
) -> None:
    """Get VOC 2012, masks, cues and initial weights: checked, unpacked, in place. What is there already stays."""
    fetcher = Fetcher(voc_root, catalogue=catalogue, own=own, keep_archives=keep_archives)
    if show:
        for name, source in fetcher.sources.items():
            size = f"{source.size / 1e6:.1f} MB" if source.size else f"at most {source.most / 1e6:.0f} MB"
            there = "there" if fetcher.is_there(source) else "-"
            typer.echo(f"{name}\n  {source.what}\n  {size}, {there}: {fetcher.place(source)}")
            typer.echo("".join(f"  {url}\n" for url in source.urls) + f"  {source.note}")
        return
    for outcome in fetcher.fetch(names or ()):
        typer.echo(outcome)
    if not names:
        weights = fetcher.place(fetcher.sources["vgg16_20M"])
        typer.echo(f'next: make reproduce-voc VOC_ROOT={voc_root} ARGS="stage1.init.weights={weights}"')


@data_app.command(
    "sbd", epilog="Example: repro data sbd benchmark_RELEASE/dataset --voc-root data/VOCdevkit/VOC2012"
)
def data_sbd(
    sbd: Annotated[Path, typer.Argument(help="SBD's folder, with cls/*.mat, train.txt and val.txt.")],
    voc_root: Annotated[Path, typer.Option(help="The VOC tree that gets the masks and the list.")],
) -> None:
    """Turn SBD's .mat files into SegmentationClassAug masks and write train_aug.txt, the 10,582 training images."""
    result = build_train_aug(find_sbd(sbd), VocLayout.open(voc_root))
    typer.echo(
        f"{voc_root / 'SegmentationClassAug'}: {result.written} masks written, {result.kept} were there"
    )
    typer.echo(result.list_path)


@data_app.command("verify", epilog="Example: repro data verify data/VOCdevkit/VOC2012 --out report.json")
def data_verify(
    root: Annotated[Path, typer.Argument(help="The VOC tree.")] = Path("data/VOCdevkit/VOC2012"),
    cues: Annotated[Path | None, typer.Option(help="Cue file; the one beside VOCdevkit by default.")] = None,
    input_list: Annotated[Path | None, typer.Option(help="List of images and cue indices; as above.")] = None,
    quick: Annotated[bool, typer.Option(help="Only the headers of images and masks.")] = False,
    partial: Annotated[bool, typer.Option(help="A part of the sets: the lists say how many.")] = False,
    pin: Annotated[
        bool, typer.Option(help="Remember what images and masks are; later calls compare.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON, too.")] = None,
) -> None:
    """Check a VOC tree: counts, every image and mask, cues, hashes."""
    report = verify(root, cues=cues, input_list=input_list, quick=quick, partial=partial, pin=pin)
    for check in report.checks:
        typer.echo(check)
    if out:
        write_json(out, report.as_dict())
    if failed := [check.name for check in report.checks if not check.ok]:
        raise InputError(f"{root}: {len(failed)} of {len(report.checks)} checks failed: {', '.join(failed)}")


@data_app.command("mini", epilog="Example: repro data mini data/mini")
def data_mini(
    root: Annotated[Path, typer.Argument(help="Folder to build it in.")],
    seed: Annotated[int, typer.Option(help="Another seed is another set.")] = 0,
) -> None:
    """Build the embedded set: a small generated data set in VOC layout."""
    typer.echo(build_mini(root, seed=seed).root)


@data_app.command("cues", epilog="Example: repro data cues localization_cues.pickle.gz localization_cues.h5")
def data_cues(
    source: Annotated[Path, typer.Argument(help="The originals' .pickle or .pickle.gz.")],
    target: Annotated[Path, typer.Argument(help="The .h5 to write.")],
) -> None:
    """Convert the originals' cue pickle to HDF5, once, so that runs start at once and no pickle is read again."""
    convert_cues(source, target)
    typer.echo(target)


@data_app.command(
    "labels",
    epilog="Example: repro data labels VOC2012/Annotations labels.csv        "
    "repro data labels instances_train2014.json labels.csv --config dsrg_vgg16_coco",
)
def data_labels(
    source: Annotated[
        Path,
        typer.Argument(
            help="A CSV or text file, a folder of VOC's Annotations or ImageSets/Main, COCO's JSON, a cue file."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="The .csv to write: image and class names.")],
    config: ConfigOption = "dsrg_vgg16_voc",
    input_list: Annotated[
        Path | None, typer.Option("--list", help="A cue file's list, lines 'image index'.")
    ] = None,
) -> None:
    """Write image-level labels of any form as a CSV, to look at or to train on."""
    classes = load_config(config).dataset.classes
    labels = read_labels(source, classes, input_list=input_list)
    write_labels(target, labels, classes)
    typer.echo(f"{target}: {sum(map(bool, labels.values()))} images")


@data_app.command(
    "coco-masks",
    epilog="Example: repro data coco-masks coco/annotations/instances_val2014.json coco/masks/val2014",
)
def data_coco_masks(
    annotations: Annotated[Path, typer.Argument(help="COCO's instances_*.json.")],
    out: Annotated[Path, typer.Argument(help="Folder for the masks, <image>.png.")],
) -> None:
    """Draw COCO's objects as masks of 81 classes, to score against; masks that are there already are kept."""
    instances = CocoInstances(annotations)
    for _ in tqdm(instances.write_masks(out), total=len(instances.images), unit="image", disable=None):
        pass
    typer.echo(f"{out}: {len(instances.images)} masks")


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; what goes wrong is one line on standard error.

    2 for bad input, 1 for a run that had to stop, 130 and 143 after SIGINT and SIGTERM.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    with _terminable(), ranks.joined():
        try:
            app(arguments, prog_name="repro")
        except SystemExit as stop:  # how typer ends every command, usage errors with status 2 among them
            status = int(stop.code or 0)
            if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                _complain("interrupted; the same command goes on from what is done")
            return status
        except InputError as error:
            _complain(str(error))
            return 2
        except StoppedError as error:
            _complain(str(error))
            return error.status
        except OSError as error:
            _complain(f"{error.filename or ''}: {error.strerror or error}")
            return 2
    return 0


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does: what is being written is finished or removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _complain(line: str) -> None:
    who = "" if ranks.is_first() else f" (rank {ranks.rank()})"
    print(f"repro{who}: {line}", file=sys.stderr)


def _say(line: str) -> None:
    """A command's result, once for all ranks."""
    if ranks.is_first():
        typer.echo(line)


def _load(
    profile: str, overrides: list[str] | None, device: str | None, seed: int | None, **stages: tuple[str, ...]
) -> Config:
    return load_config(profile, _overrides(overrides, device, seed), **stages)


def _overrides(overrides: list[str] | None, device: str | None, seed: int | None) -> list[str]:
    options = [f"{key}={value}" for key, value in (("device", device), ("seed", seed)) if value is not None]
    return [*(overrides or []), *options]


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(number) for number in text.split(",") if number.strip()]
    except ValueError:
        seeds = []
    if text and not seeds:
        raise InputError(f"--seeds {text}: expected whole numbers with commas between")
    return seeds


def _predict(
    settings: Config,
    weights: Path,
    images: dict[str, Path],
    out: Path,
    script: PredictConfig,
    labels: Callable[[str], Sequence[int]] | None = None,
) -> None:
    model = load_model(settings, weights, resolve_device(settings.device))
    described = describe(settings, weights, script)
    _report(
        predict_folder(TorchSegmenter(model, script), images, out, described=described, labels=labels), out
    )


def _report(result: FolderResult, out: Path) -> None:
    """Say what was done; a lone image that failed is bad input, failures among several are a list and status 1."""
    total = result.written + result.kept + len(result.failures)
    if result.failures and total == 1:
        raise InputError(next(iter(result.failures.values())))
    _say(f"{out}: {result.written} masks written, {result.kept} were there")
    if result.failures:
        if ranks.is_first():
            print(f"repro: {len(result.failures)} of {total} images failed:", file=sys.stderr)
            for reason in result.failures.values():
                print(f"  {reason}", file=sys.stderr)
        raise typer.Exit(1)


def _images(source: Path, ids: Path | None, option: str = "--images") -> dict[str, Path]:
    if not source.exists():
        raise InputError(f"{option} {source}: no such file or folder")
    files = find_images(source) if source.is_dir() else {source.stem: source}
    if ids is None:
        return files
    names = read_id_list(ids)
    if absent := [name for name in names if name not in files]:
        raise InputError(f"{ids}: {absent[0]} has no image in {source}")
    return {name: files[name] for name in names}
