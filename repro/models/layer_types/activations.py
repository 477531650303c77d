"""Layers that change each value for itself: ReLU, Dropout, Sigmoid, PReLU, Power, …"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from repro.layers.powers import exponential, logarithm, power
from repro.models.literals import literal
from repro.models.registry import Called, Layer, register
from weights_conversion.caffe_pb2 import FillerParameter


@register("ReLU")
class ReLU(Layer):
    """max(x, 0) + negative_slope · min(x, 0) (``relu_layer.cpp``)."""

    field = "relu_param"
    keeps_shape = reads_bottom = True
    harmless_after = frozenset(("ReLU", "Dropout"))  # they keep the sign, or pass no gradient

    def setup(self) -> None:
        self.slope = self.p.negative_slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x, self.slope) if self.slope else F.relu(x)

    def caffe_gradient(self, top_diff: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        return torch.where(held > 0, top_diff, self.slope * top_diff)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        if self.slope:
            graph.emit("LeakyRelu", bottoms, tops[0], alpha=self.slope)
        else:
            graph.emit("Relu", bottoms, tops[0])

    def source(self, code: Any, *bottoms: str) -> str:
        (x,) = bottoms
        return f"F.leaky_relu({x}, {literal(self.slope)})" if self.slope else f"F.relu({x})"


@register("Dropout")
class Dropout(Layer):
    """Element-wise dropout; in training what stays is divided by the share that stays, so that tests change nothing."""

    field = "dropout_param"
    keeps_shape = True
    operator = "Identity"  # in tests; as a node it keeps the layer's and the blob's names

    def setup(self) -> None:
        self.ratio = self.p.dropout_ratio
        if not 0 <= self.ratio < 1:
            self.fail("dropout_ratio", f"{self.ratio:g}, expected 0 to less than 1")
        if not self.p.scale_train:
            self.fail("scale_train", "false is not supported")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.ratio, self.training)

    def source(self, code: Any, *bottoms: str) -> str:
        return f"F.dropout({bottoms[0]}, {literal(self.ratio)}, self.training)"


@register("AbsVal")
class AbsVal(Called):
    """abs x; Caffe has it with a top of its own alone (``absval_layer.cpp``)."""

    function, operator = torch.abs, "Abs"
    keeps_shape = True
    in_place = False


@register("BNLL")
class BNLL(Called):
    """log(1 + e^x) (``bnll_layer.cpp``)."""

    function, operator = F.softplus, "Softplus"
    keeps_shape = reads_bottom = overwrites_itself = True

    def caffe_gradient(self, top_diff: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        return top_diff * torch.sigmoid(held.clamp_max(50))


@register("Sigmoid")
class Sigmoid(Called):
    """1 / (1 + e^-x) (``sigmoid_layer.cpp``)."""

    function, operator = torch.sigmoid, "Sigmoid"
    keeps_shape = reads_top = True

    def caffe_gradient(self, top_diff: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        return top_diff * held * (1 - held)


@register("TanH")
class TanH(Called):
    """tanh x (``tanh_layer.cpp``)."""

    function, operator = torch.tanh, "Tanh"
    keeps_shape = reads_top = True

    def caffe_gradient(self, top_diff: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        return top_diff * (1 - held * held)


@register("ELU")
class ELU(Called):
    """x above 0, alpha · (e^x - 1) below (``elu_layer.cpp``)."""

    field = "elu_param"
    function, operator = F.elu, "Elu"
    keeps_shape = reads_bottom = True

    def setup(self) -> None:
        self.arguments = self.attributes = {"alpha": self.p.alpha}

    def caffe_gradient(self, top_diff: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        return torch.where(held > 0, top_diff, (self.arguments["alpha"] + held) * top_diff)


@register("PReLU")
class PReLU(Layer):
    """max(x, 0) + weight · min(x, 0), a weight per channel or one for all (``prelu_layer.cpp``)."""

    field = "prelu_param"
    keeps_shape = True

    def setup(self) -> None:
        if len(self.shapes[0]) < 2:
            self.fail("", f"a bottom of {len(self.shapes[0])} axes, expected 2 or more")
        filler = self.p.filler if self.p.HasField("filler") else FillerParameter(value=0.25)
        self.blob("weight", () if self.p.channel_shared else self.shapes[0][1:2], filler)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.prelu(x, self.weight.reshape(-1))

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        slope = self.weight.reshape(-1, *[1] * (len(self.shapes[0]) - 2))
        graph.emit("PRelu", [*bottoms, graph.constant(f"{self.caffe_name}.slope", slope)], tops[0])

    def source(self, code: Any, *bottoms: str) -> str:
        weight = code.blob("weight")
        return f"F.prelu({bottoms[0]}, {weight if self.weight.ndim else f'{weight}.reshape(1)'})"


@register("Power")
class Power(Called):
    """(shift + scale · x)^power (``power_layer.cpp``)."""

    field = "power_param"
    function = power
    keeps_shape = reads_bottom = overwrites_itself = True

    def setup(self) -> None:
        self.arguments = {name: getattr(self.p, name) for name in ("power", "scale", "shift")}

    def caffe_gradient(self, top_diff: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """The factor twice: Caffe writes it where the incoming gradient stood, then multiplies the two."""
        exponent, scale, shift = self.arguments["power"], self.arguments["scale"], self.arguments["shift"]
        if exponent * scale == 0 or exponent == 1:
            return torch.full_like(top_diff, (exponent * scale) ** 2)
        if exponent == 2:
            return (2 * scale * (scale * held + shift)).square()
        if shift == 0:
            return (exponent * (held / held)).square()
        return (exponent * scale * (held / (scale * held + shift))).square()

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        inner = linear(graph, bottoms[0], self.arguments["scale"], self.arguments["shift"])
        graph.emit("Pow", [inner, graph.number(self.arguments["power"])], tops[0])


class WithBase(Called):
    """Exp and Log: a base, -1 for e, and scale · x + shift."""

    keeps_shape = True

    def setup(self) -> None:
        base, self.scale, self.shift = self.p.base, self.p.scale, self.p.shift
        if base != -1 and not 0 < base < math.inf:
            self.fail("base", f"{base:g}, expected more than 0, or -1 for e")
        if base == 1 and self.field == "log_param":
            self.fail("base", "1, of which there are no logarithms")
        self.log_base = 1.0 if base == -1 else math.log(base)
        self.arguments = {"base": base, "scale": self.scale, "shift": self.shift}


@register("Exp")
class Exp(WithBase):
    """base^(shift + scale · x), base -1 for e (``exp_layer.cpp``)."""

    field = "exp_param"
    function = exponential
    reads_top = True

    def caffe_gradient(self, top_diff: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        return top_diff * held * (self.scale * self.log_base)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        scale, shift = self.log_base * self.scale, self.log_base * self.shift
        graph.emit("Exp", [linear(graph, bottoms[0], scale, shift)], tops[0])


@register("Log")
class Log(WithBase):
    """log_base(shift + scale · x), base -1 for e (``log_layer.cpp``)."""

    field = "log_param"
    function = logarithm
    reads_bottom = overwrites_itself = True

    def caffe_gradient(self, top_diff: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """The factor twice, as for Power."""
        return (self.scale / self.log_base / (self.scale * held + self.shift)).square()

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        inner = graph.step("log", "Log", [linear(graph, bottoms[0], self.scale, self.shift)])
        graph.emit("Div", [inner, graph.number(self.log_base)], tops[0])


@register("Threshold")
class Threshold(Layer):
    """1 above the threshold, else 0 (``threshold_layer.cpp``)."""

    field = "threshold_param"
    keeps_shape = True

    def setup(self) -> None:
        self.threshold = self.p.threshold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > self.threshold).to(x.dtype)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        above = graph.step("above", "Greater", [*bottoms, graph.number(self.threshold)])
        graph.emit("Cast", [above], tops[0], to=1)

    def source(self, code: Any, *bottoms: str) -> str:
        (x,) = bottoms
        return f"({x} > {literal(self.threshold)}).to({x}.dtype)"


@register("Clip")
class Clip(Called):
    """min(max(x, min), max); the gradient passes between the two, ends included (``clip_layer.cpp``)."""

    field = "clip_param"
    function = torch.clamp
    keeps_shape = True

    def setup(self) -> None:
        for name in ("min", "max"):
            if not self.p.HasField(name):
                self.fail(name, "missing")
        self.arguments = {"min": self.p.min, "max": self.p.max}

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        graph.emit("Clip", [*bottoms, *map(graph.number, self.arguments.values())], tops[0])


@register("ReLU6")
class ReLU6(Clip):
    """min(max(x, 0), 6), of MobileNet's forks."""

    field = "relu6_param"

    def setup(self) -> None:
        self.arguments = {"min": 0.0, "max": 6.0}


@register("Swish")
class Swish(Layer):
    """x · sigmoid(beta · x) (``swish_layer.cpp``)."""

    field = "swish_param"
    keeps_shape = True

    def setup(self) -> None:
        self.beta = self.p.beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.beta * x)

    def onnx(self, graph: Any, bottoms: list[str], tops: list[str]) -> None:
        gate = graph.step("gate", "Sigmoid", [linear(graph, bottoms[0], self.beta, 0.0)])
        graph.emit("Mul", [bottoms[0], gate], tops[0])

    def source(self, code: Any, *bottoms: str) -> str:
        (x,) = bottoms
        return f"{x} * torch.sigmoid({literal(self.beta)} * {x})"


def linear(graph: Any, x: str, scale: float, shift: float) -> str:
    """Nodes for scale · x + shift, none where it is x."""
    if scale != 1:
        x = graph.step("scale", "Mul", [x, graph.number(scale)])
    return x if shift == 0 else graph.step("shift", "Add", [x, graph.number(shift)])
