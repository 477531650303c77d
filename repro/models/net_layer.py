"""A layer's place in its net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class NetLayer:
    """A layer's place in its net: what it reads and writes, by blob name, and the loss weight of each top.

    ``copies`` are Caffe's names for its bottoms where a blob has several readers.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    loss_weights: tuple[float, ...]
    stops: tuple[bool, ...]  # bottoms whose propagate_down is false
    copies: tuple[str | None, ...]
    edits: tuple[int, ...]

    @property
    def top(self) -> str:
        """The first of its tops."""
        return self.tops[0]

    @property
    def writes(self) -> tuple[str, ...]:
        return (*self.tops, *(self.bottoms[index] for index in self.edits))


def as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    """What a layer gives, also where it is one blob."""
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)
