"""Gradients of layers whose blob a later in-place layer has overwritten, as Caffe gives them.

An in-place layer shares one blob with the layer before it, so a backward pass that reads the blob finds what the last
of them left there. ``ReLU`` then asks whether *that* is positive: where an in-place BatchNorm or Power follows, the
gradient is not the derivative. ``Power``, ``Log`` and ``BNLL`` themselves overwrite what they read, and the first two
also the gradient. Layers that say ``reads_bottom`` or ``reads_top`` have ``caffe_gradient`` for it; nets without such
a chain run as if this file were not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from repro.models.net_layer import NetLayer
from repro.models.registry import Layer


def is_in_place(layer: NetLayer) -> bool:
    """Whether a layer's first top is its first bottom. With several readers Caffe gives each a blob of its own."""
    return (
        bool(layer.tops and layer.bottoms) and layer.tops[0] == layer.bottoms[0] and layer.copies[0] is None
    )


def overwritten(layers: Sequence[NetLayer], modules: Mapping[str, Layer]) -> set[str]:
    """The layers, by name, whose gradient in Caffe reads a blob that has been overwritten by then."""
    chains: list[list[NetLayer]] = []
    current: dict[str, list[NetLayer]] = {}  # blob -> the layers that share it, in order
    for layer in layers:
        for top in layer.tops:
            if not (is_in_place(layer) and top == layer.tops[0] and top in current):
                current[top] = []
                chains.append(current[top])
            current[top].append(layer)
    found = set()
    for chain in chains:
        for index, layer in enumerate(chain):
            module = modules[layer.name]
            later = any(other.type not in module.harmless_after for other in chain[index + 1 :])
            below = is_in_place(layer) and module.reads_bottom and (later or module.overwrites_itself)
            if below or (module.reads_top and later):
                found.add(layer.name)
    return found


class Holder:
    """One forward pass's overwritten layers, and what their blobs hold at last."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[list[torch.Tensor]]] = {}

    def run(self, module: Layer, blob: str, bottoms: Sequence[torch.Tensor]) -> torch.Tensor:
        """The layer's top, whose backward pass will read what ``blob`` holds when the forward pass is over."""
        with torch.no_grad():
            top = module(*bottoms)
        box: list[torch.Tensor] = []
        self._waiting.setdefault(blob, []).append(box)
        result: torch.Tensor = _Overwritten.apply(bottoms[0], top, module, box)
        return result

    def begins(self, blob: str) -> None:
        """A layer that is not in place makes ``blob``: what held another of this name keeps what it has."""
        self._waiting.pop(blob, None)

    def wrote(self, blob: str, content: torch.Tensor) -> None:
        """A layer has given ``blob`` this content."""
        for box in self._waiting.get(blob, ()):
            box[:] = [content.detach()]


class _Overwritten(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, top: torch.Tensor, module: Layer, box: list[torch.Tensor]
    ) -> torch.Tensor:
        ctx.module, ctx.box = module, box
        return top

    @staticmethod
    def backward(ctx: Any, top_diff: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return ctx.module.caffe_gradient(top_diff, ctx.box[0]), None, None, None
