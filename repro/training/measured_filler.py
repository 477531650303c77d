"""The filler ``lsuv``: layers are scaled by what they give on the first batch, so that activations keep their size.

The releases draw new layers from N(0, 0.01), which fits the weights that they start from. Over the convolutions of
ImageNet's VGG16 alone it does not: the features are about 20 in size, fc6's outputs about 10, and the first updates
move the scores so far that the softmax saturates. Then the min-prob floor swallows the gradient, and the net learns
nothing from the second iteration on. The original does the same.

After Mishkin and Matas, "All you need is a good init" (ICLR 2016), layer-sequential unit-variance: in the net's order,
each new layer is scaled so that its output on a batch, before the ReLU, has the size 1. Two details differ from the
paper. Weights are drawn as under ``msra`` instead of orthogonal, and the size is the root of the mean square instead of
the standard deviation: a common offset saturates a softmax as well as a spread does. Biases are 0, so that the scaled
output is exact and one pass through the net does for all layers. The classifiers keep N(0, 0.01), as in the releases.

On real images fc6 comes out as N(0, 0.0008) to N(0, 0.0013), by branch, and fc7 as N(0, 0.044). The recordings' start,
made by hand, has N(0, 0.0013) and N(0, 0.044).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from repro.errors import InputError
from repro.models import CaffeNet
from repro.models.net import Inputs

Measured = dict[str, dict[str, float]]


def fill_by_first_batch(
    model: CaffeNet, missing: Collection[str], first: Callable[[torch.Tensor], Inputs]
) -> Measured:
    """Scale the ``missing`` layers on the training's own first mini-batch.

    The result is that of :func:`scale_to_unit_outputs`; empty where no layer is missing that the filler scales.
    ``first`` gives the mini-batch whole, whatever the number of ranks, as the net takes it: on the device and in the
    dtype of the tensor it is called with.
    """
    layers = needs_measuring(model, missing)
    return scale_to_unit_outputs(model, layers, first(next(model.parameters()))) if layers else {}


def needs_measuring(model: CaffeNet, missing: Collection[str]) -> list[str]:
    """Those of the ``missing`` layers that the filler scales, in the net's order: all with weights but for the
    classifiers."""
    found, scaled = [], {id(model[name].weight) for name in model.classifiers}
    for name in dict.fromkeys(layer.name for layer in model.layers):
        if name in missing and _is_linear(model[name]) and id(model[name].weight) not in scaled:
            scaled.add(id(model[name].weight))  # one that layers share is scaled by the first of them
            found.append(name)
    return found


def scale_to_unit_outputs(model: CaffeNet, layers: Collection[str], images: Inputs) -> Measured:
    """Scale the weights of ``layers`` so that each has outputs of root mean square 1 on ``images``.

    Their biases become 0.
    Nothing here is random: dropout is off. The same model and images give the same weights on the same device.

    Args:
        model: already filled (as under ``msra``) or loaded; its mode is as before afterwards.
        layers: names of convolutions and inner products.
        images: (N, 3, H, W), mean-subtracted BGR, on the model's device and in its dtype; or what a net reads, by name.

    Returns:
        By layer, in the net's order: ``measured``, the root mean square of its output when its turn came, all layers
        below it being scaled, and ``factor``, by which the weights were multiplied.

    Raises:
        InputError: a layer gives nothing but zeros, or a number that is not finite.

    Example:
        >>> from repro.models import build_model
        >>> net = build_model("vgg16_largefov", width_divisor=16)
        >>> images = torch.randn(1, 3, 65, 65) * 60
        >>> done = scale_to_unit_outputs(net, ["fc6", "fc7"], images)
        >>> {name: round(found["measured"], 3) for name, found in scale_to_unit_outputs(net, done, images).items()}
        {'fc6': 1.0, 'fc7': 1.0}
    """
    measured: Measured = {}

    def scale(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            size = float(output.float().square().mean(dtype=torch.float64).sqrt())
            if not 0 < size < float("inf"):
                raise InputError(
                    f"init.filler=lsuv: layer {name} gives outputs of size {size:g} on the first batch, so that it "
                    "cannot be scaled; the layers below it are dead or not finite: check init.weights and the images"
                )
            measured[name] = {"measured": size, "factor": 1 / size}
            module.weight.mul_(1 / size)  # type: ignore[operator]
            return output * (1 / size)

        return hook

    was_training = model.training
    handles = []
    try:
        with torch.no_grad():
            for name in layers:
                module = model[name]
                if (bias := getattr(module, "bias", None)) is not None:
                    bias.zero_()
                handles.append(module.register_forward_hook(scale(name)))
            model.eval()
            model(images)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return measured


def _is_linear(module: nn.Module) -> bool:
    """Whether the output is proportional to a weight, as a convolution's and an inner product's without bias are."""
    return getattr(module, "caffe_type", "") in ("Convolution", "Deconvolution", "InnerProduct")
