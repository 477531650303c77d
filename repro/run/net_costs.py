"""What a net costs, counted on one without memory; and the dense CRF on a CPU."""

from __future__ import annotations

import functools

import torch

from repro.config import ModelConfig
from repro.models import CLASSIFIERS, CaffeNet


@functools.cache
def _built(model: ModelConfig, **size: int) -> CaffeNet:
    with torch.device("meta"):
        return model.build(**size)


def _net(model: ModelConfig, side: int) -> CaffeNet:
    """The net; a classifier takes images of the one size that it is built for."""
    return _built(model, input_size=side) if model.name in CLASSIFIERS else _built(model)


def parameters(model: ModelConfig, side: int = 0) -> int:
    return sum(parameter.numel() for parameter in _net(model, side).parameters())


@functools.cache
def flops(model: ModelConfig, height: int, width: int) -> int:
    """Multiplications and additions of a forward pass of one image."""
    net = _net(model, height)
    return 2 * sum(net.multiply_adds(net.shapes_for(height, width)).values())


@functools.cache
def kept_for_backward(model: ModelConfig, side: int) -> int:
    """Bytes that autograd keeps of one image of a mini-batch, weights apart."""
    net = _net(model, side)
    weights = {id(parameter) for parameter in net.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in weights:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net.train()(torch.empty(1, 3, side, side, device="meta")).sum()
    return sum(kept.values())


def crf_seconds(num_classes: int, cells: float, *, cuda: bool) -> float:
    """Ten iterations of mean field and the lattices for all cells of a batch (docs/performance.md).

    On a CPU by its cost model, on CUDA by two times of an H100 with 21 classes.
    """
    if cuda:
        return 5e-3 + 42e-9 * cells
    planes = -(-num_classes // 8)
    return cells * (10 * 24e-9 * planes + 280e-9)
