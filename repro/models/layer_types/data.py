"""Layers that bring data into a net: Input, …"""

from __future__ import annotations

import torch

from repro.models.registry import DataLayer, meta, register


@register("Input")
class Input(DataLayer):
    """Blobs that the caller gives (``input_layer.cpp``)."""

    field = "input_param"

    def setup(self) -> None:
        shapes = [tuple(shape.dim) for shape in self.p.shape]
        if len(shapes) not in (1, len(self.layer.top)):
            self.fail("shape", f"{len(shapes)} shapes for {len(self.layer.top)} tops")
        self.given = shapes * len(self.layer.top) if len(shapes) == 1 else shapes
        for shape in self.given:
            if any(size < 1 for size in shape):
                self.fail("shape", f"{shape}: expected sizes of 1 or more")

    def infer(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return tuple(meta(shape) for shape in self.given)

    def forward(self) -> tuple[torch.Tensor, ...]:
        raise RuntimeError("the caller gives these blobs")
