"""From a NetParameter to modules: blobs by name, shared parameters, multipliers; what Caffe refuses is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn as nn

from repro.errors import InputError
from repro.models.in_place import overwritten
from repro.models.net_layer import NetLayer, as_tuple
from repro.models.registry import Bottom, DataLayer, Layer, Shape, beyond_caffe, describe, layer_class, meta
from weights_conversion.caffe_pb2 import LayerParameter, NetParameter, ParamSpec

if TYPE_CHECKING:
    from repro.models.net import CaffeNet


class Builder:
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
            raise InputError(f"{net.place}no layers{f' in phase {net.phase}' if net.path else ''}")
        self._add_inputs()
        copies = self._split_names()
        for index, layer in enumerate(parameter.layer):
            self._add_layer(layer, copies[index])
        net.shapes.update({name: tuple(blob.shape) for name, blob in self.blobs.items()})
        net.overwritten.update(overwritten(net.layers, self.modules))
        self._materialise()
        net.fill()

    def _fail(self, layer: LayerParameter, reason: str) -> InputError:
        return InputError(f"{self.net.place}{describe(layer)}: {reason}")

    def _add_inputs(self) -> None:
        net, parameter = self.net, self.net.parameter
        shapes, dims = input_shapes(parameter), parameter.input_dim
        if len(shapes) != len(parameter.input) or any(size < 1 for shape in shapes for size in shape):
            field = "input_dim" if dims else "input_shape"
            raise InputError(
                f"{net.place}{field}: expected {'4 sizes' if dims else 'a shape'} of 1 or more for each of "
                f"{len(parameter.input)} inputs, found {', '.join(map(str, shapes)) or 'none'}"
            )
        for index, (name, shape) in enumerate(zip(parameter.input, shapes, strict=True)):
            if name in self.blobs:
                raise InputError(f"{net.place}input: {name!r} twice")
            if reason := beyond_caffe(shape):
                raise InputError(f"{net.place}input {name}: {reason}")
            self.blobs[name] = meta(shape)
            self.makers[name] = ("input", index)
            net.inputs[name] = shape

    def _split_names(self) -> list[list[str | None]]:
        """For each layer the names of the copies of a blob that its bottoms read (``insert_splits.cpp``).

        A top that stands in the loss has a copy for it.
        """
        makers = dict(self.makers)
        readers: dict[tuple[str, str, int], list[tuple[int, int | None]]] = {}
        layers = self.net.parameter.layer
        names: list[list[str | None]] = [[None] * len(layer.bottom) for layer in layers]
        for index, layer in enumerate(layers):
            for place, bottom in enumerate(layer.bottom):
                if bottom in makers:
                    readers.setdefault((bottom, *makers[bottom]), []).append((index, place))
            makers.update({top: (layer.name, place) for place, top in enumerate(layer.top)})
            for place, weight in enumerate(layer.loss_weight[: len(layer.top)]):
                if weight:
                    readers.setdefault((layer.top[place], layer.name, place), []).append((index, None))
        known = {*self.makers, *(top for layer in layers for top in layer.top)}
        for (blob, maker, number), places in readers.items():
            for copy_number, (index, reader) in enumerate(places if len(places) > 1 else ()):
                name = f"{blob}_{maker}_{number}_split_{copy_number}"
                if name in known:
                    raise self._fail(layers[index], f"top: {name!r} is Caffe's name for a copy of {blob!r}")
                if reader is not None:
                    names[index][reader] = name
        return names

    def _add_layer(self, parameter: LayerParameter, copies: list[str | None]) -> None:
        net = self.net
        try:
            kind = layer_class(parameter)
        except InputError as error:
            raise InputError(f"{net.place}{error}") from None
        for bottom in parameter.bottom:
            if bottom not in self.blobs:
                later = [other.name for other in net.parameter.layer if bottom in other.top]
                reason = f"layer {later[0]!r}, which makes it, comes later" if later else "no layer makes it"
                raise self._fail(parameter, f"bottom: {bottom!r}: {reason}")
        if problem := wrong_place(parameter, kind, {name: maker for name, (maker, _) in self.makers.items()}):
            raise self._fail(parameter, problem)
        bottoms = [
            Bottom(bottom, tuple(self.blobs[bottom].shape), self.modules.get(self.makers[bottom][0]))
            for bottom in parameter.bottom
        ]
        try:
            module = kind(parameter, bottoms)
            result = as_tuple(
                module.train(net.phase == "train").infer(*(self.blobs[b.name] for b in bottoms))
            )
        except InputError as error:
            raise InputError(f"{net.place}{error}") from None
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

    @staticmethod
    def _loss_weights(parameter: LayerParameter, module: Layer) -> tuple[float, ...]:
        given, tops = list(parameter.loss_weight), len(parameter.top)
        return tuple(given or [1.0 if module.is_loss and index == 0 else 0.0 for index in range(tops)])

    def _set_parameters(self, key: str, parameter: LayerParameter, module: Layer) -> None:
        """Multipliers, and one tensor for all parameters of one name."""
        specs = list(parameter.param)
        if problem := too_many_params(parameter, module):
            raise self._fail(parameter, problem)
        for index, kind in enumerate(module.fillers):
            spec = specs[index] if index < len(specs) else ParamSpec()
            owner = self.owners.setdefault(spec.name, (key, kind)) if spec.name else (key, kind)
            if owner == (key, kind):
                learnt = kind not in module.not_learnt
                wanted = spec.lr_mult != 0 or self.net.parameter.force_backward
                module._parameters[kind].requires_grad_(learnt and wanted)  # type: ignore[union-attr]
                self.net.multipliers[f"{key}.{kind}"] = (spec.lr_mult, spec.decay_mult)
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
        known = self.net.multipliers[place]
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
        self.net.multipliers[place] = (values[0], values[1])
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
                    try:
                        new = nn.Parameter(torch.empty(old.shape), requires_grad=old.requires_grad)
                    except RuntimeError:  # the allocator's
                        module.fail("", f"its {kind} of {tuple(old.shape)} does not fit into memory")
                    made[id(old)] = new
                module._parameters[kind] = made[id(old)]


def input_shapes(parameter: NetParameter) -> list[Shape]:
    """The shapes of a net's ``input`` blobs: ``input_shape``, or the older ``input_dim``, four sizes per blob."""
    dims = parameter.input_dim
    old = [tuple(dims[at : at + 4]) for at in range(0, len(dims), 4)]
    return [tuple(shape.dim) for shape in parameter.input_shape] or old


def wrong_place(parameter: LayerParameter, kind: type[Layer], makers: Mapping[str, str]) -> str:
    """Why Caffe refuses a layer among those before it, whatever its settings; "" where it does not.

    A loss without a top gets one of its own name (``AutoTopBlobs``). ``makers`` are the layers that made the blobs so
    far.
    """
    if kind.is_loss and not parameter.top:
        parameter.top.append(parameter.name or parameter.type)
    for index, top in enumerate(parameter.top):
        in_place = index < len(parameter.bottom) and parameter.bottom[index] == top
        if top in parameter.top[:index]:
            return f"top: {top!r} twice"
        if top in makers and not in_place:
            return f"top: {top!r} is made twice, by {makers[top]!r} too"
    for field, values, what, blobs in (
        ("propagate_down", parameter.propagate_down, "bottoms", parameter.bottom),
        ("loss_weight", parameter.loss_weight, "tops", parameter.top),
    ):
        if values and len(values) != len(blobs):
            return f"{field}: {len(values)} values for {len(blobs)} {what}"
    return ""


def too_many_params(parameter: LayerParameter, module: Layer) -> str:
    """What is said of a layer with more ``param`` than blobs; "" of any other."""
    given, blobs = len(parameter.param), len(module.fillers)
    return f"param: {given} given, the layer has {blobs} blobs" if given > blobs else ""
