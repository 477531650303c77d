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
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn as nn

from repro.errors import InputError
from repro.models.fillers import Scheme, fill_, fill_weight_
from repro.models.in_place import Holder, is_in_place, overwritten
from repro.models.registry import Bottom, DataLayer, Layer, beyond_caffe, describe, layer_class, meta
from weights_conversion.caffe_pb2 import TEST, TRAIN, LayerParameter, NetParameter, NetStateRule, ParamSpec
from weights_conversion.lift import lift
from weights_conversion.mapping import LoadReport
from weights_conversion.prototxt import Message, read_prototxt
from weights_conversion.upgrade import upgraded

Blobs = dict[str, torch.Tensor]
Inputs = torch.Tensor | Mapping[str, torch.Tensor] | None
PhaseName = Literal["train", "test"]


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


@dataclass(frozen=True)
class _Plan:
    """Which layers run for given and wanted blobs, and what may be freed after each."""

    layers: tuple[NetLayer, ...]
    frees: tuple[tuple[str, ...], ...]


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

    autocast: torch.dtype | None = None  # of convolutions, set by repro/precision.py

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
        self._multipliers: dict[str, tuple[float, float]] = {}
        self._plans: dict[Any, _Plan] = {}
        self._sizes: dict[Any, dict[str, tuple[int, ...]]] = {}
        self._overwritten: set[str] = set()
        _Builder(self).build()
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
            raise InputError(f"{self._place}no layer has a loss_weight: nothing to minimise")
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
        blobs = self._run_layers(inputs, self._plan(frozenset(inputs), None), shapes_alone=True)
        return {name: tuple(blob.shape) for name, blob in blobs.items()}

    @property
    def _place(self) -> str:
        return f"{self.path}: " if self.path else ""

    def _given(self, inputs: Inputs) -> Blobs:
        """The inputs by blob name, checked."""
        if isinstance(inputs, torch.Tensor):
            if len(self.inputs) != 1:
                raise InputError(
                    f"{self._place}{self.name} has {len(self.inputs)} inputs ({', '.join(self.inputs) or 'none'}): "
                    "expected a dictionary of them"
                )
            given = dict.fromkeys(self.inputs, inputs)
        else:
            given = dict(inputs or {})
        for name, blob in given.items():
            built = self.shapes.get(name)
            if built is None:
                raise InputError(f"{self._place}{self.name} has no blob {name!r}")
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

    def _plan(self, given: frozenset[str], wanted: tuple[str, ...] | None) -> _Plan:
        """The layers to run where ``given`` blobs are there and ``wanted`` ones are asked for (None: all)."""
        if (given, wanted) in self._plans:
            return self._plans[given, wanted]
        needed = set(wanted if wanted is not None else self.outputs)
        kept: list[NetLayer] = []
        for layer in reversed(self.layers):
            is_data = isinstance(self[layer.name], DataLayer)
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
        missing = [blob for blob in self.inputs if blob in needed and blob not in given]
        if missing:
            raise InputError(f"{self._place}{self.name}: input {', '.join(missing)} is missing")
        frees: list[tuple[str, ...]] = [() for _ in kept]
        if wanted is not None:
            last = {bottom: index for index, layer in enumerate(kept) for bottom in layer.bottoms}
            unread = {
                top: index
                for index, layer in enumerate(kept)
                for top in layer.tops
                if last.get(top, -1) < index
            }
            for blob, index in (last | unread).items():
                if blob not in wanted:
                    frees[index] = (*frees[index], blob)
        plan = self._plans[given, wanted] = _Plan(tuple(kept), tuple(frees))
        return plan

    def _run(self, given: Blobs, plan: _Plan) -> Blobs:
        """All blobs of the plan's layers, but for those that it frees."""
        if self.autocast is not None and given:
            device = next(iter(given.values())).device.type
            with torch.autocast(device, self.autocast):
                return self._run_layers(given, plan)
        return self._run_layers(given, plan)

    def _run_layers(self, given: Blobs, plan: _Plan, *, shapes_alone: bool = False) -> Blobs:
        blobs, keeps_all, holder = dict(given), not any(plan.frees), Holder()
        for layer, frees in zip(plan.layers, plan.frees, strict=True):
            module = self[layer.name]
            bottoms = [blobs[name] for name in layer.bottoms]
            if keeps_all:
                for name, bottom in zip(layer.copies, bottoms, strict=True):
                    if name is not None:
                        blobs[name] = bottom
            if layer.stops:
                bottoms = [x.detach() if stop else x for x, stop in zip(bottoms, layer.stops, strict=True)]
            if shapes_alone:
                result = _tuple(module.infer(*bottoms))
            elif isinstance(module, DataLayer):
                result = tuple(top.to(self._device) for top in _tuple(module(*bottoms)))
            elif layer.name in self._overwritten:
                result = (holder.run(module, layer.tops[0], bottoms),)
            else:
                result = _tuple(module(*bottoms))
            if self._overwritten and layer.tops:
                holder.wrote(layer.tops[0], result[0], is_in_place(layer))
            blobs.update(zip(layer.writes, result, strict=True))
            blobs.update(
                {name: given[name] for name in layer.tops if name in given and name not in layer.bottoms}
            )
            for name in frees:
                blobs.pop(name, None)
        return blobs

    @property
    def _device(self) -> torch.device:
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
        own_scheme = scheme == "file"
        classifiers = () if own_scheme else self.classifiers
        blocks = [
            layer.name for layer in self.layers if layer.type == "Scale" and layer.name.endswith("_branch2c")
        ]
        filled: set[int] = set()
        for layer in self.layers:
            for kind, blob in self[layer.name].caffe_blobs().items():
                if id(blob) in filled:
                    continue
                filled.add(id(blob))
                filler = self[layer.name].fillers[kind]
                if not own_scheme and kind == "weight" and blob.ndim > 1:
                    is_classifier, reads_image = (
                        layer.name in classifiers,
                        bool({*self.inputs} & {*layer.bottoms}),
                    )
                    fill_weight_(
                        blob, scheme, generator, is_classifier=is_classifier, reads_image=reads_image
                    )
                else:
                    try:
                        fill_(blob, filler, generator)
                    except ValueError as error:
                        self[layer.name].fail(f"{kind}_filler", str(error))
                if scheme not in ("file", "gaussian") and kind == "weight" and layer.name in blocks:
                    with torch.no_grad():
                        blob.fill_(len(blocks) ** -0.5)

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
            self._multipliers[name] = (float(lr_mult), float(decay_mult))

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters in Caffe's order with their multipliers, one group a parameter.

        Blobs that are not learnt have 0/0, as Caffe's solver states count them too.
        """
        return [
            {
                "params": [parameter],
                "lr_mult": self._multipliers[name][0] if parameter.requires_grad else 0.0,
                "decay_mult": self._multipliers[name][1] if parameter.requires_grad else 0.0,
                "name": name,
            }
            for name, parameter in self.named_parameters()
        ]


def _tuple(result: Any) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


class _Builder:
    """Makes the modules of a net's parameter, on the meta device for the shapes, then fills them on the CPU."""

    def __init__(self, net: CaffeNet) -> None:
        self.net = net
        self.blobs: dict[str, torch.Tensor] = {}
        self.makers: dict[str, tuple[str, int]] = {}  # blob -> who made it last: layer (or input) and index
        self.modules: dict[str, Layer] = {}
        self.owners: dict[str, tuple[str, str]] = {}  # name of a shared parameter -> layer and blob name
        self.stated: set[tuple[str, str]] = set()  # (its place, multiplier) where a layer wrote one

    def build(self) -> None:
        net, parameter = self.net, self.net.parameter
        if not parameter.layer:
            raise InputError(f"{net._place}no layers{f' in phase {net.phase}' if net.path else ''}")
        self._add_inputs()
        copies = self._split_names()
        for index, layer in enumerate(parameter.layer):
            self._add_layer(layer, copies[index])
        net.shapes = {name: tuple(blob.shape) for name, blob in self.blobs.items()}
        net._overwritten = overwritten(net.layers, self.modules)
        self._materialise()
        net.fill()

    def _fail(self, layer: LayerParameter, reason: str) -> InputError:
        return InputError(f"{self.net._place}{describe(layer)}: {reason}")

    def _add_inputs(self) -> None:
        """The blobs of ``input``, with ``input_shape`` or the older ``input_dim``, four a blob."""
        net, parameter = self.net, self.net.parameter
        shapes = [tuple(shape.dim) for shape in parameter.input_shape]
        dims = list(parameter.input_dim)
        if not shapes and dims:
            shapes = [tuple(dims[at : at + 4]) for at in range(0, len(dims), 4)]
        if len(shapes) != len(parameter.input) or any(size < 1 for shape in shapes for size in shape):
            field = "input_dim" if dims else "input_shape"
            raise InputError(
                f"{net._place}{field}: expected {'4 sizes' if dims else 'a shape'} of 1 or more for each of "
                f"{len(parameter.input)} inputs, found {', '.join(map(str, shapes)) or 'none'}"
            )
        for index, (name, shape) in enumerate(zip(parameter.input, shapes, strict=True)):
            if name in self.blobs:
                raise InputError(f"{net._place}input: {name!r} twice")
            if reason := beyond_caffe(shape):
                raise InputError(f"{net._place}input {name}: {reason}")
            self.blobs[name] = meta(shape)
            self.makers[name] = ("input", index)
            net.inputs[name] = shape

    def _split_names(self) -> list[list[str | None]]:
        """For each layer the names of the copies of a blob that its bottoms read (``insert_splits.cpp``)."""
        makers = dict(self.makers)
        readers: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
        layers = self.net.parameter.layer
        names: list[list[str | None]] = [[None] * len(layer.bottom) for layer in layers]
        for index, layer in enumerate(layers):
            for place, bottom in enumerate(layer.bottom):
                if bottom in makers:
                    readers.setdefault((bottom, *makers[bottom]), []).append((index, place))
            makers.update({top: (layer.name, place) for place, top in enumerate(layer.top)})
        for (blob, maker, number), places in readers.items():
            if len(places) > 1:
                for copy_number, (index, place) in enumerate(places):
                    names[index][place] = f"{blob}_{maker}_{number}_split_{copy_number}"
        return names

    def _add_layer(self, parameter: LayerParameter, copies: list[str | None]) -> None:
        net = self.net
        try:
            kind = layer_class(parameter)
        except InputError as error:
            raise InputError(f"{net._place}{error}") from None
        if kind.is_loss and not parameter.top:  # AutoTopBlobs
            parameter.top.append(parameter.name or parameter.type)
        for bottom in parameter.bottom:
            if bottom not in self.blobs:
                later = [other.name for other in net.parameter.layer if bottom in other.top]
                reason = f"layer {later[0]!r}, which makes it, comes later" if later else "no layer makes it"
                raise self._fail(parameter, f"bottom: {bottom!r}: {reason}")
        for index, top in enumerate(parameter.top):
            in_place = index < len(parameter.bottom) and parameter.bottom[index] == top
            if top in parameter.top[:index]:
                raise self._fail(parameter, f"top: {top!r} twice")
            if top in self.blobs and not in_place:
                maker = self.makers[top][0]
                raise self._fail(parameter, f"top: {top!r} is made twice, by {maker!r} too")
        if parameter.propagate_down and len(parameter.propagate_down) != len(parameter.bottom):
            raise self._fail(
                parameter,
                f"propagate_down: {len(parameter.propagate_down)} values for {len(parameter.bottom)} bottoms",
            )
        bottoms = [
            Bottom(bottom, tuple(self.blobs[bottom].shape), self.modules.get(self.makers[bottom][0]))
            for bottom in parameter.bottom
        ]
        try:
            module = kind(parameter, bottoms)
            result = _tuple(module.train(net.phase == "train").infer(*(self.blobs[b.name] for b in bottoms)))
        except InputError as error:
            raise InputError(f"{net._place}{error}") from None
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            shapes = ", ".join(str(bottom.shape) for bottom in bottoms)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise self._fail(parameter, f"cannot take bottoms of {shapes}: {reason}") from error
        key = self._key(parameter, module)
        weights = self._loss_weights(parameter, module)
        # force_backward overrides it (net.cpp)
        stops = tuple(not flag and not net.parameter.force_backward for flag in parameter.propagate_down)
        place = NetLayer(
            key,
            parameter.type,
            tuple(parameter.bottom),
            tuple(parameter.top),
            weights,
            stops if any(stops) else (),
            tuple(copies),
            module.edits,
        )
        if len(result) != len(place.writes):
            raise self._fail(parameter, f"top: {len(parameter.top)} tops, the layer gives {len(result)}")
        net._modules[key] = module
        net.layers.append(place)
        self._set_parameters(key, parameter, module)
        for index, top in enumerate(place.tops):
            self.makers[top] = (key, index)
        self.modules[key] = module
        self.blobs.update(zip(place.writes, result, strict=True))
        self.blobs.update(
            {name: self.blobs[b] for name, b in zip(copies, place.bottoms, strict=True) if name}
        )
        if isinstance(module, DataLayer) and parameter.type == "Input":
            net.inputs |= {top: tuple(self.blobs[top].shape) for top in place.tops}
            net.layers.pop()

    def _key(self, parameter: LayerParameter, module: Layer) -> str:
        name = parameter.name
        if not name:
            if module.fillers:
                raise self._fail(parameter, "name: missing, and the layer has parameters")
            name = f"{parameter.type} {len(self.modules) + 1}"
        if name not in self.modules:
            return name
        if module.fillers or self.modules[name].fillers:
            raise self._fail(parameter, "name: two layers have it, and one has parameters")
        return f"{name} {len(self.modules) + 1}"

    def _loss_weights(self, parameter: LayerParameter, module: Layer) -> tuple[float, ...]:
        given, tops = list(parameter.loss_weight), len(parameter.top)
        if given and len(given) != tops:
            raise self._fail(parameter, f"loss_weight: {len(given)} values for {tops} tops")
        return tuple(given or [1.0 if module.is_loss and index == 0 else 0.0 for index in range(tops)])

    def _set_parameters(self, key: str, parameter: LayerParameter, module: Layer) -> None:
        """Multipliers, and one tensor for all parameters of one name."""
        specs = list(parameter.param)
        if len(specs) > len(module.fillers):
            raise self._fail(
                parameter, f"param: {len(specs)} given, the layer has {len(module.fillers)} blobs"
            )
        for index, kind in enumerate(module.fillers):
            spec = specs[index] if index < len(specs) else ParamSpec()
            owner = self.owners.setdefault(spec.name, (key, kind)) if spec.name else (key, kind)
            if owner == (key, kind):
                learnt = kind not in module.not_learnt
                wanted = spec.lr_mult != 0 or self.net.parameter.force_backward
                module._parameters[kind].requires_grad_(learnt and wanted)  # type: ignore[union-attr]
                self.net._multipliers[f"{key}.{kind}"] = (spec.lr_mult, spec.decay_mult)
                self.stated |= {(f"{key}.{kind}", f) for f in ("lr_mult", "decay_mult") if spec.HasField(f)}
            else:
                self._share(parameter, module, kind, spec, owner)

    def _share(
        self, parameter: LayerParameter, module: Layer, kind: str, spec: ParamSpec, owner: tuple[str, str]
    ) -> None:
        first = self.modules.get(owner[0], module)._parameters[owner[1]]
        own = module._parameters[kind]
        assert first is not None
        assert own is not None
        if first.shape != own.shape:
            raise self._fail(
                parameter,
                f"param.name: {spec.name!r} has the shape {tuple(first.shape)} in layer {owner[0]!r}, "
                f"here {tuple(own.shape)}",
            )
        place = ".".join(owner)
        known = self.net._multipliers[place]
        values = list(known)
        for index, field in enumerate(("lr_mult", "decay_mult")):
            if not spec.HasField(field):
                continue
            value = getattr(spec, field)
            if (place, field) in self.stated and known[index] != value:
                raise self._fail(
                    parameter,
                    f"param.{field}: {value:g}, but {known[index]:g} for {spec.name!r} in layer {owner[0]!r}",
                )
            self.stated.add((place, field))
            values[index] = value
        self.net._multipliers[place] = (values[0], values[1])
        wanted = values[0] != 0 or self.net.parameter.force_backward
        first.requires_grad_(first.requires_grad and wanted)
        module._parameters[kind] = first

    def _materialise(self) -> None:
        """Parameters on the CPU in place of those on the meta device; shared ones stay one object."""
        made: dict[int, nn.Parameter] = {}
        for layer in self.net.layers:
            module = self.net[layer.name]
            for kind in module.fillers:
                old = module._parameters[kind]
                assert old is not None
                if id(old) not in made:
                    new = nn.Parameter(torch.empty(old.shape), requires_grad=old.requires_grad)
                    made[id(old)] = new
                module._parameters[kind] = made[id(old)]


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


__all__ = ["CaffeNet", "LoadReport", "NetLayer", "filtered", "load_net", "read_net"]
