"""Verbs about weight files: convert, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from repro.cli.shared import app, say
from repro.config import load_config
from repro.errors import InputError
from repro.models import CaffeNet, build_model
from repro.training.prototxts import deploy_prototxt, train_prototxt
from weights_conversion import (
    STATE_ENDINGS,
    Message,
    caffe_layers,
    convert_solverstate,
    convert_weights,
    describe_file,
    write_prototxt,
)


@app.command(
    epilog="Example: repro convert vgg16_20M.caffemodel vgg16_20M_mc.safetensors --to vgg16_aspp\n\n"
    "repro convert runs/a/stage1/iter_4000.state iter_4000.solverstate --to vgg16_aspp\n\n"
    "repro convert a.safetensors a.caffemodel --to vgg16_aspp --prototxt a.prototxt"
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
) -> None:
    """Carry weights from one kind of file to another, by layer name, and say what was done with each layer."""
    model = None
    if to is not None:
        torch.manual_seed(seed)  # a built model is filled; once more would take a tenth of the time of it all
        model = build_model(to, num_classes=num_classes, width_divisor=width_divisor, input_size=input_size)
    if config and not train_to:
        raise InputError(f"--config {config}: goes with --train-prototxt")
    texts = _prototxts(model, deploy_to, train_to, config, stage)
    if target.name.endswith(STATE_ENDINGS):
        written = convert_solverstate(source, target, model)
    elif model is None:
        raise InputError(f"{source}: say with --to which net the weights are for")
    else:
        outputs = caffe_layers(model)[model.classifiers[-1]].tensors["weight"].shape[0]
        net = {"name": to, "num_classes": outputs, "width_divisor": width_divisor, "filler_seed": seed}
        if model.fixed_size:
            net["input_size"] = input_size
        report = convert_weights(model, source, target, net=net, spread_branches=spread_branches)
        say(report)
        written = [target]
    for path, text in texts.items():
        write_prototxt(text, path)
    for path in (*written, *texts):
        say(path)


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


@app.command(epilog="Example: repro inspect vgg16_20M.caffemodel\n\nrepro inspect train-s.prototxt")
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
        say(line)
