"""The verb check: a net beside Caffe, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repro.cli.shared import Answer, app, verb
from repro.constants import TOLERANCE
from repro.errors import InputError


@verb(
    app,
    examples=r"""
    repro check deploy.prototxt net.caffemodel

    repro check deploy.prototxt net.caffemodel --recording blobs.h5
    """,
)
def check(
    prototxt: Annotated[Path, typer.Argument(help="The net: the file that Caffe runs.")],
    weights: Annotated[
        Path | None,
        typer.Argument(
            help="Its weights: a .caffemodel, or any other file that convert reads. Without: its fillers' values.",
            show_default=False,
        ),
    ] = None,
    recording: Annotated[
        Path | None,
        typer.Option(
            help="Caffe's own blobs, written by tools/record_blobs.py. Without: OpenCV's importer.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            help="An image for the net's first input, with OpenCV. Without: random values.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random inputs, and of the fillers.")] = 0,
    tolerance: Annotated[float, typer.Option(help="Of each blob's largest value.")] = TOLERANCE,
    partial: Annotated[
        bool, typer.Option("--partial", help="A blob that is not in the recording is no difference.")
    ] = False,
) -> Answer:
    """Compare a net's blobs, layer by layer, with a recording of Caffe's or with OpenCV's importer.

    The first layer that differs is named, with both values. The exit status is 0 where all are equal, 1 where one
    differs, 2 for bad input.
    """
    import torch

    from repro.models import load_net
    from repro.models.weights import load_weights
    from repro.parity import compare, read_recording
    from repro.parity.opencv import beside_opencv, example_inputs

    if not tolerance >= 0:
        raise InputError(f"--tolerance {tolerance}: expected 0 or more")
    if recording is not None and image is not None:
        raise InputError(f"--image {image}: goes without --recording, which holds the inputs")
    if recording is None and partial:
        raise InputError("--partial: goes with --recording")
    recorded = None if recording is None else read_recording(recording)
    torch.manual_seed(seed)
    net = load_net(prototxt, phase="train" if recorded is not None and recorded.phase == "TRAIN" else "test")
    report = None if weights is None else load_weights(net, weights)
    if report is not None and not report.loaded and net.params:
        raise InputError(
            f"{weights}: none of its layers is in the net of {prototxt}: {', '.join(report.unused[:5])}"
        )
    if recorded is not None:
        found = compare(net, recorded, tolerance=tolerance, partial=partial)
    else:
        as_it_is = report is not None and report.form.startswith("Caffe binary") and not report.changes
        inputs = example_inputs(net, image, seed)
        # OpenCV fills nothing, and loses the blobs of V0 files: then all weights are written for it
        caffemodel = weights if report and as_it_is and not (report.missing or "V0" in report.form) else None
        found = beside_opencv(net, inputs, caffemodel=caffemodel, tolerance=tolerance)
    return Answer(
        {"net": prototxt, **found.as_json()},
        [*([report] if report is not None else []), *found.lines()],
        status=1 if found.first else 0,
    )
