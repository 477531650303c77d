"""A net is its NetParameter: layers in the file's order, built from the registry, joined by named blobs.

    net = load_net("deploy.prototxt", "net.caffemodel")
    scores = net(images)
    blobs = net.forward_blobs(images)       # every blob, as Caffe leaves it

Rules (``net.cpp``): layers run in the file's order. A top with the name of the bottom at its place is in-place: later
readers see the changed blob. Gradients of all readers of a blob add up. A layer belongs to the net when the state
(phase, level, stages) meets its ``include`` and ``exclude`` rules. Parameters of one ``param { name }`` are one tensor.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn

from repro.errors import InputError
from repro.models.fillers import Scheme, fill_net
from repro.models.net_builder import Builder
from repro.models.net_layer import NetLayer
from repro.models.net_run import Blobs, RunPlan, plan, run_layers
from repro.models.net_state import PhaseName, filtered
from repro.models.registry import DataLayer, Layer, meta
from weights_conversion.caffe_pb2 import NetParameter
from weights_conversion.lift import lift
from weights_conversion.prototxt import Message, read_prototxt
from weights_conversion.upgrade import upgraded

Inputs = torch.Tensor | Mapping[str, torch.Tensor] | None


class CaffeNet(nn.Module):
    """A net built from its NetParameter; sub-modules carry Caffe's layer names.

    Args:
        parameter: the net, in any layout.
        phase, stages, level: the state, which decides on layers with ``include`` and ``exclude``.
        path: where it was read, for messages.

    ``parameter`` is the net as it runs: upgraded, without the layers of other states. ``layers`` are its layers,
    ``inputs`` the blobs that the caller gives, ``outputs`` those that no layer reads.

    Raises:
        InputError: a net that Caffe would refuse, or a layer or setting that is not supported here, by name.

    >>> from repro.models.zoo import net_parameter
    >>> net = CaffeNet(net_parameter("vgg16_aspp", width_divisor=64), phase="train")
    >>> net.inputs, net.outputs
    ({'images': (1, 3, 321, 321)}, ['fc8-SEC'])
    >>> net.params["conv1_1"][0].shape
    torch.Size([1, 3, 3, 3])
    """

    # set by repro/precision.py
    autocast: torch.dtype | None = None  # of convolutions
    channels_last: bool | None = None  # how images are laid out; None: as they come

    def __init__(
        self,
        parameter: NetParameter,
        *,
        phase: PhaseName = "test",
        stages: Collection[str] = (),
        level: int = 0,
        path: str = "",
    ) -> None:
        super().__init__()
        self.path, self.phase = path, phase
        self.parameter = filtered(upgraded(parameter, path), phase, stages=stages, level=level)
        self.layers: list[NetLayer] = []
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.multipliers: dict[str, tuple[float, float]] = {}
        self._plans: dict[Any, RunPlan] = {}
        self._sizes: dict[Any, dict[str, tuple[int, ...]]] = {}
        self.overwritten: set[str] = set()
        Builder(self).build()
        self.train(phase == "train")

    @property
    def name(self) -> str:
        return self.parameter.name

    @property
    def outputs(self) -> list[str]:
        """The blobs that no layer reads, in the order of the layers that make them."""
        last: dict[str, bool] = dict.fromkeys(self.inputs, True)
        for layer in self.layers:
            for bottom in layer.bottoms:
                last[bottom] = False
            for top in layer.tops:
                last.pop(top, None)
                last[top] = True
        return [blob for blob, unread in last.items() if unread and blob not in self.inputs] or [*last]

    @property
    def data_layers(self) -> list[NetLayer]:
        """The layers that make batches."""
        return [layer for layer in self.layers if isinstance(self[layer.name], DataLayer)]

    @property
    def scores_blob(self) -> str:
        """The output, the last of several."""
        return self.outputs[-1]

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The layers that give the scores: the last with parameters on the way to ``scores_blob``."""
        wanted, found = {self.scores_blob}, []
        for layer in reversed(self.layers):
            if wanted.intersection(layer.tops):
                if (
                    "weight" in self[layer.name].fillers
                    and self[layer.name].fillers["weight"].type != "constant"
                ):
                    found.append(layer.name)
                    wanted -= {*layer.tops}
                else:
                    wanted = (wanted - {*layer.tops}) | {*layer.bottoms}
        return tuple(reversed(found))

    @property
    def input_size(self) -> int:
        """The height of the first input, as built."""
        return next(iter(self.inputs.values()))[2]

    @property
    def fixed_size(self) -> bool:
        """Whether the net takes no other image size than the one it was built for."""
        return not self._takes(self.input_size + 32, self.input_size + 32)

    @property
    def params(self) -> dict[str, list[nn.Parameter]]:
        """As pycaffe's: each layer's parameters by its name, in Caffe's blob order; shared ones are one object."""
        return {
            layer.name: [*self[layer.name].caffe_blobs().values()]
            for layer in self.layers
            if self[layer.name].fillers
        }

    def __getitem__(self, name: str) -> Layer:
        """The layer of a name, also where PyTorch could not have it as an attribute."""
        return self._modules[name]  # type: ignore[return-value]

    def forward(self, inputs: Inputs = None, names: Sequence[str] | None = None) -> Any:
        """The output blob, or a dictionary of them where there are several.

        Args:
            inputs: the tensor of the one input, or a dictionary by blob name. Any blob may be given: what only leads to
                given ones does not run. Data layers run where their blobs are not given.
            names: give these blobs instead, as a dictionary.

        Raises:
            InputError: a missing input, or one of a shape that the net cannot take.
        """
        outputs = self.outputs if names is None else list(names)
        blobs = self.forward_some(inputs, *outputs)
        return blobs[0] if names is None and len(outputs) == 1 else dict(zip(outputs, blobs, strict=True))

    def forward_some(self, inputs: Inputs, *names: str) -> list[torch.Tensor]:
        """The named blobs, in the inputs' dtype; arguments as for ``forward``. No other is kept longer than needed."""
        given = self._given(inputs)
        blobs = self._run(given, self._plan(frozenset(given), names))
        if self.autocast is None:
            return [blobs[name] for name in names]
        dtype = next(iter(given.values())).dtype
        return [blobs[name].to(dtype) if blobs[name].is_floating_point() else blobs[name] for name in names]

    def forward_blobs(self, inputs: Inputs = None) -> Blobs:
        """Every blob by its Caffe name, as Caffe leaves it (an in-place ReLU has run); arguments as for ``forward``.

        The copies that Caffe makes of a blob with several readers are there too, under Caffe's names.
        """
        given = self._given(inputs)
        return self._run(given, self._plan(frozenset(given), None))

    def total_loss(self, blobs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The sum of loss_weight · top over all tops that count, a scalar.

        Raises:
            InputError: no top counts.
        """
        terms = [
            weight * blobs[top].sum() if weight != 1 else blobs[top].sum()
            for layer in self.layers
            for top, weight in zip(layer.tops, layer.loss_weights, strict=True)
            if weight and top in blobs
        ]
        if not terms:
            raise InputError(f"{self.place}no layer has a loss_weight: nothing to minimise")
        return torch.stack(terms).sum()

    def gradient_at(self, images: torch.Tensor, layer: str) -> torch.Tensor:
        """The gradient of the summed scores at the output of ``layer``, in its shape; nothing is added to ``.grad``.

        Where an in-place ReLU follows, it is the gradient below it, which is what Caffe leaves in the blob they
        share. For saliency put the net in evaluation mode: ``net.gradient_at(images, "conv4_1")``.
        """
        found: list[torch.Tensor] = []

        def start_here(module: nn.Module, inputs: object, result: torch.Tensor) -> torch.Tensor:
            found.append(result.detach().requires_grad_())
            return found[0]

        handle = self[layer].register_forward_hook(start_here)
        try:
            with torch.enable_grad():
                total = self(images).sum()
        finally:
            handle.remove()
        return torch.autograd.grad(total, found[0])[0]

    def grid_size(self, height: int, width: int, blob: str | None = None) -> tuple[int, int]:
        """Rows and columns of ``blob``, by default of the scores, for an input of this size (321x321 -> 41x41)."""
        sizes = self.shapes_for(height, width)[blob or self.scores_blob]
        return (sizes[2], sizes[3]) if len(sizes) > 3 else (1, 1)

    def shapes_for(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of every blob for a first input of this size.

        Raises:
            InputError: the net cannot take it.
        """
        first, *others = self.inputs.items()
        shape = (*first[1][:2], height, width)
        if shape == first[1]:
            return self.shapes
        if shape not in self._sizes:
            try:
                self._sizes[shape] = self._inferred({first[0]: shape, **dict(others)})
            except (RuntimeError, ValueError, IndexError) as error:
                raise InputError(
                    f"{self.name}: cannot take {first[0]} of {height}x{width}: {error}"
                ) from None
        return self._sizes[shape]

    def _takes(self, height: int, width: int) -> bool:
        try:
            self.shapes_for(height, width)
        except InputError:
            return False
        return True

    def free_sizes(self) -> tuple[bool, bool]:
        """Whether the net takes another batch size, and another height and width, than it was built for."""
        return self.shapes_with(batch=1) is not None, self.shapes_with(side=32) is not None

    def shapes_with(self, *, batch: int = 0, side: int = 0) -> dict[str, tuple[int, ...]] | None:
        """All shapes for inputs with so many more items, rows and columns than as built; None if it cannot take them.

        Other inputs grow with the first one where they have its batch size, and its height and width.
        """
        first = next(iter(self.inputs.values()), ())
        if not first or (side and len(first) != 4):
            return None
        inputs = {}
        for name, shape in self.inputs.items():
            grown = list(shape)
            if grown[:1] == [first[0]]:
                grown[0] += batch
            if len(grown) == 4 and shape[2:] == first[2:]:
                grown[2:] = [size + side for size in grown[2:]]
            inputs[name] = grown
        try:
            return self._inferred(inputs)
        except (RuntimeError, ValueError, IndexError):
            return None

    def multiply_adds(self, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, int]:
        """By layer, the multiplications with weights of one pass, for blobs of ``shapes``, by default as built."""
        found = shapes or self.shapes
        return {
            layer.name: self[layer.name].multiply_adds([tuple(found[blob]) for blob in layer.bottoms])
            for layer in self.layers
        }

    def _inferred(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """All shapes for inputs of these, from running the net on the meta device."""
        inputs = {name: meta(shape) for name, shape in shapes.items()}
        blobs = run_layers(self, inputs, self._plan(frozenset(inputs), None), shapes_alone=True)
        return {name: tuple(blob.shape) for name, blob in blobs.items()}

    @property
    def place(self) -> str:
        return f"{self.path}: " if self.path else ""

    def _given(self, inputs: Inputs) -> Blobs:
        """The inputs by blob name, checked."""
        if isinstance(inputs, torch.Tensor):
            if len(self.inputs) != 1:
                raise InputError(
                    f"{self.place}{self.name} has {len(self.inputs)} inputs ({', '.join(self.inputs) or 'none'}): "
                    "expected a dictionary of them"
                )
            given = dict.fromkeys(self.inputs, inputs)
        else:
            given = dict(inputs or {})
        for name, blob in given.items():
            built = self.shapes.get(name)
            if built is None:
                raise InputError(f"{self.place}{self.name} has no blob {name!r}")
            if blob.shape[1:] != built[1:] and name in self.inputs:
                self._check_size(name, blob, built)
        return given

    def _check_size(self, name: str, blob: torch.Tensor, built: tuple[int, ...]) -> None:
        found = tuple(blob.shape)
        fits = len(found) == len(built) == 4 and found[1] == built[1]
        if name == next(iter(self.inputs)) and fits:
            fits = len(self.inputs) > 1 or self._takes(found[2], found[3])
        elif len(found) == len(built):
            fits = True  # a second input may follow the first one's size; what does not fit, fails where it is read
        if not fits and len(found) == 4 and found[1] == built[1]:
            raise InputError(
                f"{self.name}: expected {name} of {'x'.join(map(str, built[2:]))}, found "
                f"{'x'.join(map(str, found[2:]))}; the net is made for one size"
            )
        if not fits:
            raise InputError(f"{self.name}: {name}: expected the shape {built}, found {found}")

    def _plan(self, given: frozenset[str], wanted: tuple[str, ...] | None) -> RunPlan:
        """The layers to run, looked up or made."""
        if (given, wanted) not in self._plans:
            self._plans[given, wanted] = plan(self, given, wanted)
        return self._plans[given, wanted]

    def _run(self, given: Blobs, plan: RunPlan) -> Blobs:
        """All blobs of the plan's layers, but for those that it frees."""
        given = {name: self._laid_out(blob) for name, blob in given.items()}
        if self.autocast is not None and given:
            device = next(iter(given.values())).device.type
            with torch.autocast(device, self.autocast):
                return run_layers(self, given, plan)
        return run_layers(self, given, plan)

    def _laid_out(self, blob: torch.Tensor) -> torch.Tensor:
        if self.channels_last is None or blob.ndim != 4:
            return blob
        return blob.contiguous(
            memory_format=torch.channels_last if self.channels_last else torch.contiguous_format
        )

    @property
    def device(self) -> torch.device:
        first = next(self.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def fill(self, scheme: Scheme = "file", generator: torch.Generator | None = None) -> None:
        """Fill every parameter as its filler in the file says, or for a net that learns from nothing.

        Args:
            scheme: ``file``, or how :func:`repro.models.fillers.fill_weight_` fills the weights of convolutions and
                inner products; then biases become 0, and where a ResNet's block ends in a Scale, without statistics to
                normalise by, its weight is 1/sqrt(blocks), so that the sum of the blocks keeps its order of magnitude.
            generator: the source of randomness; PyTorch's global one by default.
        """
        fill_net(self, scheme, generator)

    def set_multipliers(self, multipliers: Mapping[str, Sequence[float]]) -> None:
        """Give parameters another (``lr_mult``, ``decay_mult``) than the file's, by name (``conv1_1.weight``).

        Where ``lr_mult`` is 0 no gradient is computed, which then does not count in ``clip_gradients`` either.
        Raises InputError for a name that the net has not.
        """
        parameters = dict(self.named_parameters())
        for name, (lr_mult, decay_mult) in multipliers.items():
            if name not in parameters:
                raise InputError(f"multipliers: {self.name} has no parameter {name!r}")
            parameters[name].requires_grad_(lr_mult != 0)
            self.multipliers[name] = (float(lr_mult), float(decay_mult))

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters in Caffe's order with their multipliers, one group per parameter.

        Blobs that are not learnt have 0/0, as Caffe's solver states count them too.
        """
        return [
            {
                "params": [parameter],
                "lr_mult": self.multipliers[name][0] if parameter.requires_grad else 0.0,
                "decay_mult": self.multipliers[name][1] if parameter.requires_grad else 0.0,
                "name": name,
            }
            for name, parameter in self.named_parameters()
        ]


def read_net(prototxt: str | os.PathLike[str] | Message, path: str | None = None) -> NetParameter:
    """The NetParameter of a prototxt, as it is written; ``path`` names it in messages.

    Raises:
        InputError: a file that cannot be read, a field that is unknown or has an impossible value.
    """
    message = prototxt if isinstance(prototxt, Message) else read_prototxt(prototxt)
    if path is None:
        path = "" if isinstance(prototxt, Message) else os.fspath(prototxt)
    return lift(message, NetParameter, path)


def load_net(
    prototxt: str | os.PathLike[str] | NetParameter,
    weights: str | os.PathLike[str] | None = None,
    *,
    phase: PhaseName = "test",
    stages: Collection[str] = (),
    level: int = 0,
) -> CaffeNet:
    """The net of a prototxt, filled as it says, or with the weights of a file.

    Args:
        prototxt: its path, or a NetParameter; layouts of old Caffe are upgraded as Caffe does.
        weights: any form that :func:`weights_conversion.load_weights` reads; layers correspond by name, those that
            the file has not keep their filler's values.
        phase, stages, level: the state, for layers with ``include`` or ``exclude``. The net is in training mode
            in phase ``train``, else in evaluation mode.

    Raises:
        InputError: a layer type or setting that is not known, by layer, type and field; parts that do not fit.

    >>> from repro.models.zoo import net_parameter
    >>> net = load_net(net_parameter("vgg16_aspp", width_divisor=64))
    >>> net(torch.zeros(1, 3, 65, 65)).shape
    torch.Size([1, 21, 9, 9])
    """
    if isinstance(prototxt, NetParameter):
        parameter, path = prototxt, ""
    else:
        parameter, path = read_net(prototxt), os.fspath(prototxt)
    net = CaffeNet(parameter, phase=phase, stages=stages, level=level, path=path)
    if weights is not None:
        from repro.models.weights import load_weights  # which knows our own nets, built of this module

        load_weights(net, weights)
    return net
