"""A PyTorch model seen as Caffe layers: names, types and blobs in Caffe's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class HasCaffeBlobs(Protocol):
    """A module that says itself what it is in Caffe; for layers that PyTorch has under no one type.

    A Caffe BatchNorm, for instance, has ``caffe_type = "BatchNorm"`` and returns
    ``{"mean": …, "variance": …, "factor": …}``. The names are the tensors' names in safetensors files, the
    order is the order of the blobs in Caffe files, and the tensors are the module's own, which loading fills.
    """

    caffe_type: str

    def caffe_blobs(self) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, eq=False)
class CaffeLayerView:
    """A layer's Caffe type and its tensors (not copies) by name, in the order of its blobs.

    ``legacy`` says of each blob of a file whether its shape is the old one of four axes; empty: none is.
    """

    type: str
    tensors: dict[str, Tensor]
    legacy: tuple[bool, ...] = ()


_TYPES: dict[type[nn.Module], str] = {nn.Conv2d: "Convolution", nn.Linear: "InnerProduct"}


def caffe_layers(model: nn.Module) -> dict[str, CaffeLayerView]:
    """Every layer of ``model`` that has blobs, by Caffe name, in the order of ``model.named_modules()``.

    A module's Caffe name is the last part of its path, so containers may group layers. Blobs are
    (weight, bias) for convolutions and inner products, (weight,) without bias, or what ``caffe_blobs()``
    returns (see ``HasCaffeBlobs``).

    Raises ``TypeError`` for a module with parameters of its own that is none of these, ``ValueError`` if two
    layers have the same name.
    """
    layers: dict[str, CaffeLayerView] = {}
    for path, module in model.named_modules():
        if isinstance(module, HasCaffeBlobs):
            view = CaffeLayerView(module.caffe_type, dict(module.caffe_blobs()))
            if not view.tensors:
                continue
        elif type_ := next((name for kind, name in _TYPES.items() if isinstance(module, kind)), None):
            view = CaffeLayerView(type_, dict(module.named_parameters(recurse=False)))
        elif next(module.parameters(recurse=False), None) is None:
            continue
        else:
            raise TypeError(f"module {path!r} ({type(module).__name__}) has parameters but no form in Caffe")
        name = getattr(module, "caffe_name", path.rpartition(".")[2])
        if name in layers:
            raise ValueError(f"two layers of the model are named {name!r}, the second is {path!r}")
        layers[name] = view
    return layers


def detached(tensor: Tensor) -> Tensor:
    """The values on the CPU, contiguous, as the writers need them; a copy only where one is needed."""
    return tensor.detach().cpu().contiguous()
