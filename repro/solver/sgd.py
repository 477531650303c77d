"""Caffe's SGD (``SGDSolver``), which is not ``torch.optim.SGD``.

Per iteration, with the gradients of ``iter_size`` mini-batches summed:

    g <- g · clip_gradients / |g|      if clip_gradients > 0 and the global L2 norm |g| exceeds it
    g <- g / iter_size
    g <- g + weight_decay·decay_mult·w          (L2; L1: ·sign(w))
    h <- momentum·h + rate·lr_mult·g
    w <- w - h

The rate sits inside the history h: after a step down, the momentum still carries the old rate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from repro.config import SolverConfig
from repro.models import CaffeNet
from repro.solver.policies import learning_rate


class CaffeSGD(torch.optim.Optimizer):
    """Caffe's update under PyTorch's optimizer protocol; it counts iterations and follows the rate policy itself.

    Args:
        model_or_groups: a model of :mod:`repro.models` (its ``param_groups()`` carry Caffe's multipliers), or
            dicts with ``params`` and optionally ``lr_mult`` and ``decay_mult`` (both 1 by default).
        solver_config: :class:`repro.config.SolverConfig` or a dict of its fields, Caffe's names.

    ``step()`` follows ``iter_size`` backward passes whose gradients PyTorch has summed in ``.grad``, and uses them up:
    as Caffe does in the parameters' diffs, it clips, scales and decays in ``.grad`` itself. Call ``zero_grad()`` after
    it. Parameters without a gradient count as having a zero one, as in Caffe.
    """

    def __init__(
        self,
        model_or_groups: CaffeNet | Iterable[dict[str, Any]],
        solver_config: SolverConfig | dict,
    ) -> None:
        self.config = SolverConfig.of(solver_config)
        self.iteration = 0
        self.is_stepping = (
            False  # stays True where a step was broken off: weights and history no longer belong together
        )
        groups = model_or_groups.param_groups() if isinstance(model_or_groups, CaffeNet) else model_or_groups
        super().__init__(list(groups), {"lr_mult": 1.0, "decay_mult": 1.0})

    @property
    def rate(self) -> float:
        """The rate that the next ``step()`` will use."""
        return learning_rate(self.config, self.iteration)

    @property
    def history(self) -> list[Tensor]:
        """Caffe's ``history_``: one tensor a parameter, in parameter order."""
        return [self._history(p) for group in self.param_groups for p in group["params"]]

    def load_history(self, history: Iterable[Any], iteration: int) -> None:
        """Take over a solver state: ``history`` arrays in parameter order and the iteration they belong to.

        Raises:
            ValueError: another number of arrays than parameters, or a shape that differs.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        arrays = [torch.as_tensor(array) for array in history]
        if len(arrays) != len(parameters):
            raise ValueError(
                f"history holds {len(arrays)} arrays, the model has {len(parameters)} parameters"
            )
        for index, (parameter, array) in enumerate(zip(parameters, arrays, strict=True)):
            if _without_leading_ones(array.shape) != _without_leading_ones(parameter.shape):
                raise ValueError(
                    f"history {index}: expected shape {tuple(parameter.shape)}, found {tuple(array.shape)}"
                )
        for parameter, array in zip(parameters, arrays, strict=True):
            self._history(parameter).copy_(array.reshape(parameter.shape))
        self.iteration = iteration

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One Caffe iteration; see the module's formulas."""
        if closure is not None:
            raise ValueError("CaffeSGD takes no closure: call step() after iter_size backward passes")
        config, rate = self.config, self.rate
        self.is_stepping = True
        alike: dict[tuple[float, float], tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        every: list[Tensor] = []
        for group in self.param_groups:
            weights, gradients = alike[group["lr_mult"], group["decay_mult"]]
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                weights.append(parameter)
                gradients.append(parameter.grad)
                every.append(parameter.grad)

        if config.clip_gradients > 0:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(every)))
            torch._foreach_mul_(every, (config.clip_gradients / norm).clamp(max=1.0))
        if config.iter_size > 1:
            torch._foreach_mul_(every, 1.0 / config.iter_size)
        for (lr_mult, decay_mult), (weights, gradients) in alike.items():
            if local_decay := config.weight_decay * decay_mult:
                penalty = torch._foreach_sign(weights) if config.regularization_type == "L1" else weights
                torch._foreach_add_(gradients, penalty, alpha=local_decay)
            histories = [self._history(parameter) for parameter in weights]
            torch._foreach_mul_(histories, config.momentum)
            torch._foreach_add_(histories, gradients, alpha=rate * lr_mult)
            torch._foreach_sub_(weights, histories)
        self.iteration += 1
        self.is_stepping = False

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's, with ``iteration``: the rate depends on it."""
        return {**super().state_dict(), "iteration": self.iteration}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        state = dict(state_dict)
        self.iteration = state.pop("iteration")
        super().load_state_dict(state)

    def _history(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "history" not in state:
            state["history"] = torch.zeros_like(parameter)
        history: Tensor = state["history"]
        return history


def _without_leading_ones(shape: torch.Size) -> list[int]:
    """Caffe's old solver states store every shape with four axes, filled up with 1 in front."""
    sizes = list(shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    return sizes
