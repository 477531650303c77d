"""What Caffe's solvers share (``SGDSolver::ApplyUpdate``): all but how an update is made of a gradient.

Per iteration, with the gradients of ``iter_size`` mini-batches summed:

    g <- g · clip_gradients / |g|      if clip_gradients > 0 and the global L2 norm |g| exceeds it
    g <- g / iter_size
    g <- g + weight_decay·decay_mult·w          (L2; L1: ·sign(w))
    w <- w - values(rate·lr_mult, g)            (the type's own)
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from inspect import unwrap
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from repro.config import SolverConfig
from repro.errors import InputError
from repro.models import CaffeNet
from repro.solver.policies import learning_rate

# PyTorch hides these methods from torch.compile by wrappers that import torch._dynamo at their first call: 2 seconds
# in which nothing is trained. Nobody compiles a solver, so it has them without the wrapper.
_state_dict, _load_state_dict = unwrap(Optimizer.state_dict), unwrap(Optimizer.load_state_dict)


class CaffeSolver(Optimizer):
    """Caffe's update under PyTorch's optimizer protocol; it counts iterations and follows the rate policy itself.

    Args:
        net_or_groups: a net of :mod:`repro.models` (its ``param_groups()`` carry Caffe's multipliers), or
            dicts with ``params`` and optionally ``lr_mult`` and ``decay_mult`` (both 1 by default).
        solver_config: :class:`repro.config.SolverConfig` or a dict of its fields, Caffe's names.

    Raises:
        InputError: bad settings, or those of another type.

    ``step()`` follows ``iter_size`` backward passes whose gradients PyTorch has summed in ``.grad``, and uses them up:
    as Caffe does in the parameters' diffs, it computes in ``.grad`` itself. Call ``zero_grad()`` after it. Parameters
    without a gradient count as having a zero one, as in Caffe.

    Each group's ``lr`` is rate · ``lr_mult``, the rate that the next ``step()`` uses. It is there to be read: the
    policy sets it after each step.

    >>> from repro.solver import build_solver
    >>> weight, bias = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    >>> groups = [{"params": [weight]}, {"params": [bias], "lr_mult": 2, "decay_mult": 0}]
    >>> solver = build_solver(groups, {"base_lr": 0.5, "lr_policy": "fixed", "weight_decay": 0.5})
    >>> solver.step()  # without gradients: the decay alone
    >>> weight.item(), bias.item(), [group["lr"] for group in solver.param_groups]
    (0.75, 1.0, [0.5, 1.0])
    """

    type: ClassVar[str]
    histories: ClassVar[tuple[str, ...]] = ("history",)  # what is kept of each parameter, in Caffe's order
    add_param_group = unwrap(Optimizer.add_param_group)
    zero_grad = unwrap(Optimizer.zero_grad)

    def __init__(
        self, net_or_groups: CaffeNet | Iterable[dict[str, Any]], solver_config: SolverConfig | dict
    ) -> None:
        self.config = SolverConfig.of(solver_config)
        if self.config.type != self.type:
            raise InputError(
                f"solver: type {self.config.type}: expected {self.type} for {type(self).__name__}"
            )
        self.is_stepping = (
            False  # stays True where a step was broken off: weights and history no longer belong together
        )
        groups = net_or_groups.param_groups() if isinstance(net_or_groups, CaffeNet) else net_or_groups
        super().__init__(list(groups), {"lr_mult": 1.0, "decay_mult": 1.0})
        self.iteration = 0

    @property
    def iteration(self) -> int:
        """Iterations done. Setting it sets the rate of every group, too."""
        return self._iteration

    @iteration.setter
    def iteration(self, iteration: int) -> None:
        self._iteration = iteration
        for group in self.param_groups:
            group["lr"] = self.rate * group["lr_mult"]

    @property
    def rate(self) -> float:
        """The rate that the next ``step()`` will use, before any ``lr_mult``."""
        return learning_rate(self.config, self.iteration)

    @property
    def history(self) -> list[Tensor]:
        """Caffe's ``history_``: one tensor per parameter, in parameter order; where a type keeps two kinds, first all
        of the first kind, then all of the second."""
        return [self._history(parameter, kind) for kind in self.histories for parameter in self._parameters()]

    def load_history(self, history: Iterable[Any], iteration: int) -> None:
        """Take over a solver state: ``history`` arrays as :attr:`history` has them and the iteration they belong to.

        Raises:
            ValueError: another number of arrays than there should be, or a shape that differs.
        """
        targets, arrays = self.history, [torch.as_tensor(array) for array in history]
        if len(arrays) != len(targets):
            parameters = len(self._parameters())
            kinds = f", {self.type} keeps {len(self.histories)} of each" if len(self.histories) > 1 else ""
            raise ValueError(
                f"history holds {len(arrays)} arrays, the model has {parameters} parameters{kinds}"
            )
        for index, (target, array) in enumerate(zip(targets, arrays, strict=True)):
            if _without_leading_ones(array.shape) != _without_leading_ones(target.shape):
                raise ValueError(
                    f"history {index}: expected shape {tuple(target.shape)}, found {tuple(array.shape)}"
                )
        for target, array in zip(targets, arrays, strict=True):
            target.copy_(array.reshape(target.shape))
        self.iteration = iteration

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One Caffe iteration; see the module's formulas."""
        if closure is not None:
            raise ValueError(
                f"{type(self).__name__} takes no closure: call step() after iter_size backward passes"
            )
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
            histories = ([self._history(weight, kind) for weight in weights] for kind in self.histories)
            torch._foreach_sub_(weights, self.values(rate * lr_mult, gradients, *histories))
        self.is_stepping = False
        self.iteration += 1

    @abstractmethod
    def values(self, rate: float, gradients: list[Tensor], *histories: list[Tensor]) -> list[Tensor]:
        """``ComputeUpdateValue``: what is subtracted from the weights.

        Args:
            rate: with ``lr_mult``.
            gradients: of parameters with the same multipliers; may be overwritten.
            histories: theirs, a list for each of ``self.histories``; brought up to date.
        """

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's, with ``iteration``: the rate depends on it."""
        return {**_state_dict(self), "iteration": self.iteration}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        state = dict(state_dict)
        iteration = state.pop("iteration")
        _load_state_dict(self, state)
        self.iteration = iteration

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _history(self, parameter: Tensor, kind: str) -> Tensor:
        state = self.state[parameter]
        if kind not in state:
            state[kind] = torch.zeros_like(parameter)
        history: Tensor = state[kind]
        return history


def _without_leading_ones(shape: torch.Size) -> list[int]:
    """Caffe's old solver states store every shape with four axes, filled up with 1 in front."""
    sizes = list(shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    return sizes
