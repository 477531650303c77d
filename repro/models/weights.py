"""Loading weights into our nets, with a hint at the net that a file would have fitted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from repro.errors import InputError
from weights_conversion import mapping
from weights_conversion.mapping import LoadReport, MisfitError

_FIRST_WIDTH = {"conv1_1": 64, "conv1": 64}  # outputs of the first layer at full width


def load_weights(
    net: torch.nn.Module, path: str | os.PathLike[str], *, spread_branches: bool = False
) -> LoadReport:
    """As :func:`weights_conversion.load_weights`; where a layer does not fit, the error names our nets that would."""
    with hints():
        return mapping.load_weights(net, path, spread_branches=spread_branches)


@contextmanager
def hints() -> Iterator[None]:
    """Errors of files that do not fit say which of our nets the file would fit."""
    try:
        yield
    except MisfitError as error:
        fitting = nets_that_fit(error.shapes)
        known = f"the file fits {', '.join(fitting)}" if fitting else "it fits none of our nets"
        raise InputError(f"{error}; {known}") from None


def nets_that_fit(shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> list[str]:
    """Our nets whose layers are all in a file, by layer name and shape, with the settings that they take for it."""
    from repro.models.zoo import CLASSIFIERS, SEGMENTATION_NETS, build_model

    widths = [
        wide // shapes[name]["weight"][0]
        for name, wide in _FIRST_WIDTH.items()
        if shapes.get(name, {}).get("weight", (0,))[0]
    ]
    found = []
    for name in (*SEGMENTATION_NETS, *CLASSIFIERS) if widths else ():
        if not 1 <= widths[0] <= 64:
            continue
        with torch.device("meta"):
            net = build_model(name, width_divisor=widths[0])
        last = net.classifiers[-1]
        if last not in shapes or not shapes[last].get("weight"):
            continue
        classes = shapes[last]["weight"][0]
        with torch.device("meta"):
            net = build_model(name, width_divisor=widths[0], num_classes=classes)
        if all(
            tuple(blob.shape) == shapes.get(layer.name, {}).get(kind)
            for layer in net.layers
            for kind, blob in net[layer.name].caffe_blobs().items()
        ):
            narrow = f", width_divisor {widths[0]}" if widths[0] > 1 else ""
            found.append(f"{name} (num_classes {classes}{narrow})")
    return found
