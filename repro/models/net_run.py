"""How a net's layers run: in the file's order, which of them for what is asked, and what may be freed after each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from repro.errors import InputError
from repro.models.in_place import Holder, is_in_place
from repro.models.net_layer import NetLayer, as_tuple
from repro.models.registry import DataLayer

if TYPE_CHECKING:
    from repro.models.net import CaffeNet

Blobs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class RunPlan:
    """Which layers run for given and wanted blobs, and what may be freed after each."""

    layers: tuple[NetLayer, ...]
    frees: tuple[tuple[str, ...], ...]


def plan(net: CaffeNet, given: frozenset[str], wanted: tuple[str, ...] | None) -> RunPlan:
    """The layers to run where ``given`` blobs are there and ``wanted`` ones are asked for (None: all)."""
    needed = set(wanted if wanted is not None else net.outputs)
    kept: list[NetLayer] = []
    for layer in reversed(net.layers):
        is_data = isinstance(net[layer.name], DataLayer)
        made = [top for top in layer.tops if top not in layer.bottoms]
        if made and all(top in given for top in made):
            continue
        edited = {layer.bottoms[index] for index in layer.edits}
        asked = needed.intersection(layer.writes) if wanted is not None or is_data else True
        if wanted is None and is_data:
            asked = needed.intersection(top for top in layer.tops if top not in given)
        if not asked or (not layer.tops and wanted is not None):
            continue
        kept.append(layer)
        if not edited.intersection(needed) and not is_data:
            needed -= {top for top in layer.tops if top not in layer.bottoms}
        needed.update(layer.bottoms)
    kept.reverse()
    missing = [blob for blob in net.inputs if blob in needed and blob not in given]
    if missing:
        raise InputError(f"{net.place}{net.name}: input {', '.join(missing)} is missing")
    frees: list[tuple[str, ...]] = [() for _ in kept]
    if wanted is not None:
        last = {bottom: index for index, layer in enumerate(kept) for bottom in layer.bottoms}
        unread = {
            top: index for index, layer in enumerate(kept) for top in layer.tops if last.get(top, -1) < index
        }
        for blob, index in (last | unread).items():
            if blob not in wanted:
                frees[index] = (*frees[index], blob)
    return RunPlan(tuple(kept), tuple(frees))


def run_layers(net: CaffeNet, given: Blobs, plan: RunPlan, *, shapes_alone: bool = False) -> Blobs:
    """All blobs of the plan's layers, but for those that it frees; on the meta device for the shapes alone."""
    blobs, keeps_all, holder = dict(given), not any(plan.frees), Holder()
    for layer, frees in zip(plan.layers, plan.frees, strict=True):
        module = net[layer.name]
        bottoms = [blobs[name] for name in layer.bottoms]
        if keeps_all:
            for name, bottom in zip(layer.copies, bottoms, strict=True):
                if name is not None:
                    blobs[name] = bottom
        if layer.stops:
            bottoms = [x.detach() if stop else x for x, stop in zip(bottoms, layer.stops, strict=True)]
        if net.overwritten and layer.tops and not is_in_place(layer):
            holder.begins(layer.tops[0])
        if shapes_alone:
            result = as_tuple(module.infer(*bottoms))
        elif isinstance(module, DataLayer):
            result = tuple(top.to(net.device) for top in as_tuple(module(*bottoms)))
        elif layer.name in net.overwritten:
            result = (holder.run(module, layer.tops[0], bottoms),)
        else:
            result = as_tuple(module(*bottoms))
        if net.overwritten and layer.tops:
            holder.wrote(layer.tops[0], result[0])
        blobs.update(zip(layer.writes, result, strict=True))
        blobs.update(
            {name: given[name] for name in layer.tops if name in given and name not in layer.bottoms}
        )
        for name in frees:
            blobs.pop(name, None)
    return blobs
