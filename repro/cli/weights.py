"""Verbs about weight files: convert, inspect."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repro.cli.shared import app, say
from repro.errors import InputError

if TYPE_CHECKING:
    from repro.models import CaffeNet
    from weights_conversion import Message
from weights_conversion.files import atomic_path


@app.command(
    epilog="Example: repro convert deploy.prototxt net.caffemodel net.onnx\n\n"
    "repro convert deploy.prototxt net.caffemodel net.py\n\n"
    "repro convert net.caffemodel net.safetensors\n\n"
    "repro convert vgg16_20M.caffemodel vgg16_20M_mc.safetensors --to vgg16_aspp\n\n"
    "repro convert runs/a/stage1/iter_4000.state iter_4000.solverstate --to vgg16_aspp\n\n"
    "repro convert a.safetensors a.caffemodel --to vgg16_aspp --prototxt a.prototxt"
)
def convert(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="[NET] SOURCE TARGET",
            help="NET: a deploy prototxt. SOURCE: weights, of Caffe or any other form that is read, or a solver state, "
            "of Caffe or a snapshot's .state. TARGET, by its ending: .onnx, .py (plain PyTorch), .safetensors, .h5, "
            ".npz, .caffemodel, .solverstate, .solverstate.h5. A snapshot becomes a Caffe pair.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str | None, typer.Option(help="In place of NET, the name of one of ours.", show_default=False)
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
    image: Annotated[
        Path | None,
        typer.Option(
            help="Run an .onnx or .py on this image before it is put in place, not on noise.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Carry a net's weights from one kind of file to another, by layer name, and say what was done with each layer.

    An .onnx or .py runs beside the net before it is put in place, and the largest difference is printed.
    """
    import torch

    from repro.export.net import write_net
    from repro.models import build_model, load_net
    from repro.models.weights import hints
    from weights_conversion import STATE_ENDINGS, caffe_layers, convert_solverstate, read_for, write_prototxt

    if not 2 <= len(files) <= 3:
        raise InputError(f"convert: {len(files)} files, expected [NET] SOURCE TARGET")
    source, target = files[-2:]
    if len(files) == 3 and to is not None:
        raise InputError(f"--to {to}: {files[0]} says already which net it is")
    as_net = target.suffix in (".onnx", ".py")
    if config and not train_to:
        raise InputError(f"--config {config}: goes with --train-prototxt")
    if image and not as_net:
        raise InputError(f"--image {image}: goes with an .onnx or .py")
    model: CaffeNet | None = None
    described: dict[str, Any] = {}
    if len(files) == 3:
        model = load_net(files[0])
        described = {"name": model.name, "prototxt": files[0].name}
    elif to is not None:
        torch.manual_seed(seed)  # a built model is filled; once more would take a tenth of the time of it all
        model = build_model(to, num_classes=num_classes, width_divisor=width_divisor, input_size=input_size)
        outputs = caffe_layers(model)[model.classifiers[-1]].tensors["weight"].shape[0]
        described = {
            "name": to,
            "num_classes": outputs,
            "width_divisor": width_divisor,
            "filler_seed": seed,
            **({"input_size": input_size} if model.fixed_size else {}),
        }
    texts = _prototxts(model, deploy_to, train_to, config, stage)
    if target.name.endswith(STATE_ENDINGS):
        written = convert_solverstate(source, target, model)
        for path, text in texts.items():
            write_prototxt(text, path)
        say(*written, *texts)
        return
    if as_net and model is None:
        raise InputError(f"{target}: say which net it is: its prototxt before the weights, or --to")
    with hints():
        weights = read_for(source, target, model, described, spread_branches=spread_branches)
    say(weights.report)
    with contextlib.ExitStack() as stack:  # nothing is put in place before all of it is written
        for path, text in texts.items():
            write_prototxt(text, stack.enter_context(atomic_path(path)))
        if as_net and model is not None:
            say(*write_net(model, target, source, weights.report, image))
        else:
            weights.write(target)
    say(target, *texts)


def _prototxts(
    model: CaffeNet | None, deploy: Path | None, train: Path | None, profile: str | None, stage: int
) -> dict[Path, Message]:
    from repro.config import load_config
    from repro.training.prototxts import deploy_prototxt, train_prototxt

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


@app.command(epilog="Example: repro inspect vgg16_20M.caffemodel\n\nrepro inspect train-s.prototxt")
def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="Weights or solver state: Caffe's, .safetensors, .pth, or a snapshot's .state. "
            "Or a prototxt, of a net or a solver."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="A net's prototxt as JSON.")] = False,
) -> None:
    """List what a file holds: layers, shapes, parameters, ranges of values, and where converted weights came from.

    Of a net's prototxt, in any of Caffe's layouts: its layers with types, the shapes of their tops, parameters and
    multiply-adds, and the totals.
    """
    from repro.models.inspection import describe_file, read_text
    from repro.models.summary import summarise
    from weights_conversion.kinds import file_kind

    if not as_json:
        say(*describe_file(file))
    elif file_kind(file) == "prototxt" and (net := read_text(file)).layers:
        say(json.dumps(summarise(net, path=str(file)).as_json()))
    else:
        raise InputError(f"{file}: --json goes with the prototxt of a net")
