"""Verbs about weight files: convert, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repro.cli.shared import Answer, app, verb
from repro.errors import InputError

if TYPE_CHECKING:
    from repro.models import CaffeNet


@verb(
    app,
    examples=r"""
    repro convert net.caffemodel net.safetensors

    repro convert vgg16_20M.caffemodel vgg16_20M_mc.safetensors \
      --to vgg16_aspp --spread-branches

    repro convert deploy.prototxt net.caffemodel net.onnx

    repro convert deploy.prototxt net.caffemodel net.py

    repro convert runs/a/stage1/iter_4000.state iter_4000.solverstate \
      --to vgg16_aspp

    repro convert deploy.prototxt --to vgg16_aspp

    repro convert train.prototxt --to vgg16_aspp \
      --config dsrg_vgg16_voc --stage 2
    """,
)
def convert(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="[NET] [SOURCE] TARGET",
            help="NET: a deploy prototxt. SOURCE: weights, of Caffe or any other form that is read, or a solver state, "
            "of Caffe or a snapshot's .state. TARGET, by its ending: .safetensors, .h5, .npz, .caffemodel; .onnx, .py "
            "(plain PyTorch); .solverstate, .solverstate.h5 (a snapshot becomes a Caffe pair); .prototxt (no SOURCE).",
            show_default=False,
        ),
    ],
    to: Annotated[
        str | None, typer.Option(help="In place of NET, the name of one of ours.", show_default=False)
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Its outputs.", show_default="21; 20 for classifiers")
    ] = None,
    width_divisor: Annotated[int, typer.Option(help="Divides the width of its hidden layers.")] = 1,
    input_size: Annotated[int, typer.Option(help="Side of its images: classifiers are made for one.")] = 321,
    seed: Annotated[int, typer.Option(help="Of its filler, for layers that SOURCE lacks.")] = 0,
    spread_branches: Annotated[
        bool, typer.Option(help="Copy a single fc6, fc7 into each ASPP branch.")
    ] = False,
    image: Annotated[
        Path | None,
        typer.Option(help="Compare an .onnx or .py on this image, not on noise.", show_default=False),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="Write the train prototxt of this profile, not the deploy one.", show_default=False
        ),
    ] = None,
    stage: Annotated[
        int | None,
        typer.Option(min=0, max=2, help="Its stage; classifiers train in stage 0.", show_default="1"),
    ] = None,
) -> Answer:
    """Carry weights, nets and solver states from one kind of file to another, and say what was done with each layer.

    An .onnx or .py runs beside the net before it is put in place, and the largest difference is printed.
    """
    from weights_conversion import STATE_ENDINGS, convert_solverstate
    from weights_conversion.conversion import NET_ENDINGS

    *before, target = files
    text = target.suffix == ".prototxt"
    if len(before) not in ((0,) if text else (1, 2)):
        raise InputError(
            f"{target}: {len(files)} files, expected {'it alone' if text else '[NET] SOURCE TARGET'}"
        )
    if len(before) == 2 and to is not None:
        raise InputError(f"--to {to}: {before[0]} says already which net it is")
    if image and target.suffix not in NET_ENDINGS:
        raise InputError(f"--image {image}: goes with an .onnx or .py")
    for option, value in (("--config", config), ("--stage", stage)):
        if value is not None and not (text and config):
            raise InputError(f"{option} {value}: goes with {'--config' if text else 'a .prototxt'}")
    _check_targets(target, [*before, *([image] if image else [])])
    model, described = None, {}
    if len(before) == 2:
        from repro.models import load_net

        model = load_net(before[0])
        described = {"name": model.name, "prototxt": before[0].name}
    elif to is not None:
        model, described = _ours(to, num_classes, width_divisor, input_size, seed)
    if text:
        if model is None:
            raise InputError(f"{target}: say with --to of which net")
        _write_prototxt(model, target, config, 1 if stage is None else stage)
        return Answer({"written": [target]}, [target])
    if target.name.endswith(STATE_ENDINGS):
        written = convert_solverstate(before[-1], target, model)
        return Answer({"written": written}, written)
    return _write_weights(model, before[-1], target, described, spread_branches, image)


_WRITTEN = "Written by repro convert"


def _check_targets(target: Path, inputs: list[Path]) -> None:
    """Refuse names under which something else lies: an input, a program, another net's prototxt."""
    from repro.models.source import SOURCE_HEADING
    from weights_conversion import STATE_ENDINGS, hdf5
    from weights_conversion.files import check_target
    from weights_conversion.kinds import file_kind

    def is_weights(path: Path) -> bool:
        with path.open("rb") as file:
            head = file.read(9)
        if head.startswith(hdf5.MAGIC):
            return not {"data", "history"}.isdisjoint(hdf5.root_names(path))
        return head.endswith(b"{") or file_kind(path) in ("caffemodel", "npz", "onnx", "solverstate")

    kinds = {".py": SOURCE_HEADING, ".prototxt": f"# {_WRITTEN}\n".encode()}
    check_target(target, *inputs, of="net", begins=kinds.get(target.suffix, is_weights))
    if target.suffix == ".py":  # weights are written beside it
        check_target(target.with_suffix(".safetensors"), *inputs, of="weights", begins=is_weights)
    elif target.name.endswith(STATE_ENDINGS):
        weights = target.with_name(target.name.replace(".solverstate", ".caffemodel"))
        check_target(weights, *inputs, of="weights", begins=is_weights)


def _write_weights(
    model: CaffeNet | None,
    source: Path,
    target: Path,
    net: dict[str, Any],
    spread_branches: bool,
    image: Path | None,
) -> Answer:
    """Weights, or a program that holds them."""
    from repro.export.net import write_net
    from repro.models.weights import hints
    from weights_conversion import read_for
    from weights_conversion.conversion import NET_ENDINGS

    as_net = target.suffix in NET_ENDINGS
    if source.suffix == ".prototxt":
        raise InputError(
            f"{source}: a net, and its weights were expected: repro convert {source} WEIGHTS {target}"
        )
    if as_net and model is None:
        raise InputError(f"{target}: say which net it is: its prototxt before the weights, or --to")
    with hints():
        weights = read_for(source, target, model, net, spread_branches=spread_branches)
    report: list[object] = [weights.report]
    if as_net and model is not None:
        report += write_net(model, target, source, weights.report, image)
    else:
        weights.write(target)
    return Answer({"written": [target], "report": [str(line) for line in report]}, [*report, target])


def _ours(
    name: str, num_classes: int | None, width_divisor: int, input_size: int, seed: int
) -> tuple[CaffeNet, dict[str, Any]]:
    """One of the papers' nets, filled, and its settings for the provenance."""
    import torch

    from repro.models import build_model
    from weights_conversion import caffe_layers

    torch.manual_seed(seed)  # a built model is filled; once more would take a tenth of the time of it all
    model = build_model(name, num_classes=num_classes, width_divisor=width_divisor, input_size=input_size)
    outputs = caffe_layers(model)[model.classifiers[-1]].tensors["weight"].shape[0]
    settings = {"name": name, "num_classes": outputs, "width_divisor": width_divisor, "filler_seed": seed}
    return model, {**settings, **({"input_size": input_size} if model.fixed_size else {})}


def _write_prototxt(model: CaffeNet, target: Path, profile: str | None, stage: int) -> None:
    """The net to deploy, or to train as a stage of a profile says."""
    from repro.config import load_config
    from repro.training.prototxts import deploy_prototxt, train_prototxt
    from weights_conversion import write_prototxt

    if profile is None:
        content = deploy_prototxt(model)
    else:
        settings = load_config(profile)
        section = (settings.stage0, settings.stage1, settings.stage2)[stage]
        if section is None:
            raise InputError(f"{profile}: has no section stage{stage}")
        content = train_prototxt(model, section)
    write_prototxt(content, target, _WRITTEN)


@verb(
    app,
    examples=r"""
    repro inspect vgg16_20M.caffemodel

    repro inspect train-s.prototxt
    """,
)
def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="Weights or solver state: Caffe's, .safetensors, .pth, or a snapshot's .state. "
            "Or a prototxt, of a net or a solver."
        ),
    ],
) -> Answer:
    """List what a file holds: layers, shapes, parameters, ranges of values, and where converted weights came from.

    Of a net's prototxt, in any of Caffe's layouts: its layers with types, the shapes of their tops, parameters and
    multiply-adds, and the totals.
    """
    from repro.models.inspection import describe_file, read_text
    from repro.models.summary import summarise
    from weights_conversion.kinds import file_kind

    lines = describe_file(file)
    if file_kind(file) == "prototxt" and (net := read_text(file)).layers:
        return Answer(summarise(net, path=str(file)).as_json(), lines)
    return Answer({"file": file, "report": lines}, lines)
