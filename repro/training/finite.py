"""NaN and infinity: notice them before they reach the weights, and find the blob or parameter they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from repro.models import CaffeNet
from repro.solver import CaffeSolver
from repro.training.objectives import Batch, Objective


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every element of every tensor is a finite number; waits for the device once."""
    values = list(tensors)
    if not values:
        return True
    norms = torch._foreach_norm(values, float("inf"))
    return bool(torch.stack([norm.double() for norm in norms]).isfinite().all())


def first_not_finite(model: CaffeNet, objective: Objective, batches: Iterable[Batch]) -> str | None:
    """Where, in the order of Caffe's passes, the first value that is infinite or no number turns up.

    Args:
        model: as it is before the pass, in training mode; its gradients are replaced.
        batches: the mini-batches of the iteration, on the model's device. Dropout's random state is the
            caller's matter.

    Returns:
        ``parameter conv1_1.weight``, ``blob fc6_1 (layer relu6_1)``, ``loss-Seed`` or ``gradient of conv5_3.weight``
        (of the layer nearest to the losses); None where everything is finite.
    """
    for name, parameter in model.named_parameters():
        if not all_finite([parameter]):
            return f"parameter {name}"
    model.zero_grad()
    found: list[str] = []
    for batch in batches:  # all of them: the objective's sums need every rank
        found += [
            f"blob {name}"
            for name, blob in batch.items()
            if blob.is_floating_point() and not all_finite([blob])
        ]
        hooks = [
            model[layer.name].register_forward_hook(_watch(f"blob {layer.top} (layer {layer.name})", found))
            for layer in model.layers
            if layer.tops
        ]
        try:
            outcome = objective(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        found += [name for name, loss in outcome.losses.items() if not all_finite([loss])]
        outcome.total.backward()
    if found:
        return found[0]
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not all_finite([parameter.grad]):
            return f"gradient of {name}"
    return None


def _watch(where: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        tops = output if isinstance(output, tuple) else (output,)
        if not found and not all_finite([top for top in tops if top.is_floating_point()]):
            found.append(where)

    return look


def gradients(solver: CaffeSolver) -> list[torch.Tensor]:
    """The gradients that the solver's next step will use."""
    parameters = (parameter for group in solver.param_groups for parameter in group["params"])
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
