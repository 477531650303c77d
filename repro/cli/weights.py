"""Verbs about Caffe's files: convert, prototxt, inspect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repro.cli.shared import Answer, ClassifierOption, ConfigOption, Overrides, app, is_exported, verb
from repro.errors import InputError, chosen

if TYPE_CHECKING:
    from repro.models import CaffeNet

CONVERT = "repro convert NET SOURCE TARGET"
_WRITTEN = "Written by repro prototxt"


@verb(
    app,
    examples=r"""
    repro convert net.caffemodel net.safetensors

    repro convert deploy.prototxt net.caffemodel net.onnx

    repro convert deploy.prototxt net.caffemodel net.py

    repro convert vgg16_aspp vgg16_20M.caffemodel vgg16_20M_mc.safetensors \
      --spread-branches

    repro convert vgg16_aspp runs/a/stage1/iter_4000.state \
      iter_4000.solverstate
    """,
)
def convert(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="[NET] SOURCE TARGET",
            help="NET: a deploy prototxt, or the name of one of our nets (vgg16_aspp, …; for 21 classes, at full "
            "width). SOURCE: weights, of Caffe or any other form that is read, or a solver state, of Caffe or a "
            "snapshot's .state. TARGET, by its ending: .safetensors, .h5, .npz, .caffemodel; .onnx, .py (plain "
            "PyTorch); .solverstate, .solverstate.h5 (a snapshot becomes a Caffe pair).",
            show_default=False,
        ),
    ],
    seed: Annotated[int, typer.Option(help="Of NET's fillers, for layers that SOURCE lacks.")] = 0,
    spread_branches: Annotated[
        bool, typer.Option("--spread-branches", help="Copy a single fc6, fc7 into each ASPP branch of NET.")
    ] = False,
    image: Annotated[
        Path | None,
        typer.Option(help="Compare an .onnx or .py on this image, not on noise.", show_default=False),
    ] = None,
) -> Answer:
    """Carry weights, nets and solver states from one kind of file to another, and say what was done with each layer.

    With NET, the weights are checked against it. An .onnx, a .py and a snapshot's .state need it. An .onnx or .py
    runs beside the net before it is put in place, and the largest difference is printed.
    """
    from weights_conversion import STATE_ENDINGS, convert_solverstate
    from weights_conversion.conversion import NET_ENDINGS
    from weights_conversion.files import write_new_or_same

    *before, target = files
    if len(before) not in (1, 2):
        raise InputError(f"convert {' '.join(map(str, files))}: expected [NET] SOURCE TARGET")
    if target.suffix == ".prototxt":
        raise InputError(
            f"{target}: a prototxt is not converted; repro prototxt {target} --config PROFILE writes a net's"
        )
    source = before[-1]
    state = target.name.endswith(STATE_ENDINGS)
    if image and target.suffix not in NET_ENDINGS:
        raise InputError(f"--image {image}: goes with an .onnx or .py")
    if spread_branches and (state or len(before) == 1):
        raise InputError(f"--spread-branches: goes with weights and the net that has the branches: {CONVERT}")
    _check_targets(target, [*before, *([image] if image else [])])
    model, described = (None, {}) if len(before) == 1 else _net(before[0], seed)
    if state:
        written = write_new_or_same(
            target, lambda path: convert_solverstate(source, path, model, folder=target.parent)
        )
        return Answer({"written": written}, written)
    return _write_weights(model, source, target, described, spread_branches, image)


def _check_targets(target: Path, inputs: list[Path]) -> None:
    """Refuse names under which something else lies: an input, a program, weights or a net of others."""
    from repro.models.source import SOURCE_HEADING
    from weights_conversion import STATE_ENDINGS, hdf5
    from weights_conversion.conversion import PROVENANCE, read_metadata
    from weights_conversion.files import check_target
    from weights_conversion.kinds import file_kind

    def is_weights(path: Path) -> bool:
        with path.open("rb") as file:
            head = file.read(9)
        if head.startswith(hdf5.MAGIC):
            return not {"data", "history"}.isdisjoint(hdf5.root_names(path))
        return head.endswith(b"{") or file_kind(path) in ("caffemodel", "npz", "solverstate")

    marks: dict[str, bytes | Callable[[Path], bool]] = {
        ".py": SOURCE_HEADING,
        ".onnx": is_exported,
        ".safetensors": lambda path: PROVENANCE in read_metadata(path),
    }
    check_target(target, *inputs, of="net", begins=marks.get(target.suffix, is_weights))
    beside = None  # the weights that are written with it
    if target.suffix == ".py":
        beside = target.with_suffix(".safetensors")
    elif target.name.endswith(STATE_ENDINGS):
        beside = target.with_name(target.name.replace(".solverstate", ".caffemodel"))
    if beside is not None:
        check_target(beside, *inputs, of="weights", begins=is_weights)
        if beside.exists() and not target.exists():
            raise InputError(
                f"{beside}: exists without {target.name}, which is written with it; expected another name"
            )


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
    from weights_conversion.files import write_new_or_same

    as_net = target.suffix in NET_ENDINGS
    if source.suffix == ".prototxt":
        raise InputError(
            f"{source}: a net, and its weights were expected: repro convert {source} WEIGHTS {target}"
        )
    if as_net and model is None:
        raise InputError(f"{target}: needs the net, by its prototxt or name: {CONVERT}")
    with hints():
        weights = read_for(source, target, model, net, spread_branches=spread_branches)
    report: list[object] = [weights.report]
    if as_net and model is not None:
        written, checked = write_net(model, target, source, weights.report, image)
        report += checked
    elif target.suffix == ".safetensors":  # which says who wrote it
        written = weights.write(target)
    else:
        written = write_new_or_same(target, weights.write)
    return Answer({"written": written, "report": [str(line) for line in report]}, [*report, *written])


def _net(name: Path, seed: int) -> tuple[CaffeNet, dict[str, Any]]:
    """A net by its prototxt or its name among ours, filled, and what the provenance says of it."""
    import torch

    from repro.models import CLASSIFIERS, SEGMENTATION_NETS, build_model, load_net

    torch.manual_seed(seed)
    if not name.is_dir() and (name.suffix or name.exists()):
        model = load_net(name)
        return model, {"name": model.name, "prototxt": name.name, "filler_seed": seed}
    model = build_model(chosen("NET", str(name), (*SEGMENTATION_NETS, *CLASSIFIERS)))
    return model, {"name": model.name, "filler_seed": seed}


@verb(
    app,
    examples=r"""
    repro prototxt deploy.prototxt --config dsrg_vgg16_voc

    repro prototxt train.prototxt --config dsrg_vgg16_voc --stage 2

    repro prototxt cam.prototxt --config dsrg_vgg16_voc --stage 0 \
      --net vgg16_cam model.width_divisor=4
    """,
)
def prototxt(
    target: Annotated[Path, typer.Argument(help="The .prototxt to write.")],
    config: ConfigOption,
    overrides: Overrides = None,
    stage: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2,
            help="The net that trains in this stage, with its data and losses.",
            show_default="the deploy net",
        ),
    ] = None,
    net: ClassifierOption = None,
) -> Answer:
    """Write a profile's net as Caffe's prototxt, to run or to train."""
    from repro.config import load_config
    from repro.training.prototxts import prototxt_of
    from weights_conversion import write_prototxt
    from weights_conversion.files import check_target

    check_target(target, of="net", begins=f"# {_WRITTEN}\n".encode())
    stages = () if stage is None else (f"stage{stage}",)
    content = prototxt_of(load_config(config, overrides or [], stages=stages), stage, net)
    write_prototxt(content, target, _WRITTEN)
    return Answer({"prototxt": target}, [target])


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
