"""Which layers of a net belong to it in a state: phase, level and stages (``Net::FilterNet``)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from repro.errors import InputError
from repro.models.registry import describe
from weights_conversion.caffe_pb2 import TEST, TRAIN, NetParameter, NetStateRule

PhaseName = Literal["train", "test"]


def filtered(
    parameter: NetParameter, phase: PhaseName, *, stages: Collection[str] = (), level: int = 0
) -> NetParameter:
    """A copy of the net with the layers alone that Caffe keeps in this state (``Net::FilterNet``).

    The net's own ``state`` adds its stages, and its level where ``level`` is 0.

    Raises:
        InputError: a layer has both include and exclude rules.
    """
    own = parameter.state
    wanted = TRAIN if phase == "train" else TEST
    stages, level = {*stages, *own.stage}, level or own.level

    def meets(rule: NetStateRule) -> bool:
        return (
            (not rule.HasField("phase") or rule.phase == wanted)
            and (not rule.HasField("min_level") or level >= rule.min_level)
            and (not rule.HasField("max_level") or level <= rule.max_level)
            and all(stage in stages for stage in rule.stage)
            and not any(stage in stages for stage in rule.not_stage)
        )

    result = NetParameter()
    result.CopyFrom(parameter)
    result.ClearField("layer")
    for layer in parameter.layer:
        if layer.include and layer.exclude:
            raise InputError(f"{describe(layer)}: include and exclude, expected one of them")
        if any(map(meets, layer.include)) if layer.include else not any(map(meets, layer.exclude)):
            result.layer.append(layer)
    return result
