"""Winograd's convolution against the direct sum in double precision, and where ``precision=fast`` uses it."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from parity_tests.tolerances import WINOGRAD_BACKWARD_REL, WINOGRAD_LOSS_REL, WINOGRAD_REL
from repro import precision
from repro.config import load_config
from repro.layers import winograd
from repro.layers.winograd import fast_conv2d, qualifies, winograd_conv2d
from repro.models import build_model
from repro.models.layer_types.convolution import Convolution

CPU = torch.device("cpu")
# N, C, K, H, W, dilation: odd sizes, phases of every length from 1 to 7, tiles of 4, 3 and 2, dilation beyond the map
CASES = [
    (1, 8, 16, 5, 7, 1),
    (2, 24, 8, 13, 10, 1),
    (3, 16, 40, 6, 11, 2),
    (2, 16, 16, 41, 41, 6),
    (1, 8, 24, 41, 38, 12),
    (1, 16, 8, 41, 41, 18),
    (2, 72, 88, 41, 41, 24),
    (3, 8, 16, 1, 2, 1),
    (1, 8, 8, 1, 1, 6),
    (1, 8, 8, 3, 4, 24),
    (1, 512, 32, 9, 9, 1),
]


def tensors(case, *, bias=True):
    count, inputs, outputs, height, width, dilation = case
    generator = torch.Generator().manual_seed(sum(case))
    x = torch.randn(count, inputs, height, width, generator=generator).relu()
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
    offset = torch.randn(outputs, generator=generator) if bias else None
    dy = torch.randn(count, outputs, height, width, generator=generator)
    return x, weight, offset, dy, dilation


def direct(x, weight, bias, dilation):
    return F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)


def results(convolve, values, dy, dilation):
    leaves = [None if v is None else v.detach().clone().requires_grad_() for v in values]
    y = convolve(*leaves, dilation)
    return [y.detach(), *torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy)]


def assert_near(got, want, bound, what):
    error = float((got.double() - want).abs().max() / want.abs().max())
    assert error <= bound, f"{what}: {error:.1e} of the largest value, bound {bound}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_are_those_of_the_direct_sum(case):
    *values, dy, dilation = tensors(case)
    got = results(winograd_conv2d, values, dy, dilation)
    want = results(direct, [value.double() for value in values], dy.double(), dilation)
    for what, a, b in zip(("output", "input's", "weight's", "bias's"), got, want, strict=True):
        assert a.shape == b.shape
        assert_near(a, b, WINOGRAD_REL if what == "output" else WINOGRAD_BACKWARD_REL, what)


def test_several_parts_of_a_batch(monkeypatch):
    monkeypatch.setattr(winograd, "BUFFER_FLOATS", 36 * 24 * 7)  # seven tiles at a time
    case = (3, 8, 16, 17, 14, 2)
    *values, dy, dilation = tensors(case)
    got = results(winograd_conv2d, values, dy, dilation)
    want = results(direct, [value.double() for value in values], dy.double(), dilation)
    for a, b in zip(got, want, strict=True):
        assert_near(a, b, WINOGRAD_BACKWARD_REL, str(case))


def test_any_strides_and_no_bias():
    x, weight, _, dy, dilation = tensors((2, 16, 8, 12, 9, 1), bias=False)
    wide = torch.zeros(2, 16, 12, 18)
    wide[..., ::2] = x
    dy = dy.transpose(2, 3).contiguous().transpose(2, 3)
    want = results(direct, [x.double(), weight.double(), None], dy.double(), dilation)
    for view in (wide[..., ::2], x, x.contiguous(memory_format=torch.channels_last)):
        y = winograd_conv2d(view, weight.flip(3).flip(3))
        assert_near(y, want[0], WINOGRAD_REL, "output")
        assert y.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(results(winograd_conv2d, [x, weight, None], dy, dilation), want, strict=True):
        assert_near(a, b, WINOGRAD_BACKWARD_REL, "gradient")


@pytest.mark.parametrize("dilation", [1, 2, 6, 18])
def test_backward_is_the_adjoint_of_forward(dilation):
    """<dY, J v> = <Jᵀ dY, v>, for input and weight: the map is linear in each."""
    x, weight, _, dy, _ = tensors((2, 16, 24, 37, 41, dilation), bias=False)
    y, dx, dweight = results(winograd_conv2d, [x, weight, None], dy, dilation)
    forward = (dy.double() * y.double()).sum()
    scale = dy.double().norm() * y.double().norm()
    assert abs(forward - (dx.double() * x.double()).sum()) < 1e-6 * scale
    assert abs(forward - (dweight.double() * weight.double()).sum()) < 1e-6 * scale


def test_only_the_gradients_asked_for():
    x, weight, bias, dy, dilation = tensors((1, 8, 8, 9, 9, 1))
    y = winograd_conv2d(x, weight.requires_grad_(), bias, dilation)
    (alone,) = torch.autograd.grad(y, weight, dy)
    assert torch.equal(alone, results(winograd_conv2d, [x, weight, bias], dy, dilation)[2])


def test_training_after_prediction():
    """Memory kept from a call in inference mode can be written by one that computes gradients."""
    *values, dy, dilation = tensors((1, 8, 8, 50, 50, 1))
    with torch.inference_mode():
        first = winograd_conv2d(*values, dilation)
    assert torch.equal(results(winograd_conv2d, values, dy, dilation)[0], first)


def test_the_number_of_threads_changes_no_transform():
    *values, dy, dilation = tensors((2, 16, 24, 23, 19, 2))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results(winograd_conv2d, values, dy, dilation)
        torch.set_num_threads(3)
        three, again = (results(winograd_conv2d, values, dy, dilation) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(one, three, again, strict=True):
        assert torch.equal(b, c)
        assert_near(a, b.double(), 1e-6, "with three threads")


# weight's shape, stride, pad, dilation, groups
LAYERS = {
    "a 3x3 layer": ((16, 16, 3, 3), 1, 2, 2, 1, True),
    "1x1": ((16, 16, 1, 1), 1, 0, 1, 1, False),
    "stride": ((16, 16, 3, 3), 2, 1, 1, 1, False),
    "no padding": ((16, 16, 3, 3), 1, 0, 1, 1, False),
    "padding unlike the dilation": ((16, 16, 3, 3), 1, 1, 2, 1, False),
    "groups": ((16, 8, 3, 3), 1, 1, 1, 2, False),
    "image": ((16, 3, 3, 3), 1, 1, 1, 1, False),
    "21 classes": ((21, 16, 3, 3), 1, 1, 1, 1, False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_which_layers_are_replaced(name, monkeypatch):
    monkeypatch.setattr(winograd, "pays", lambda *_: True)
    shape, stride, pad, dilation, groups, replaced = LAYERS[name]
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    settings = ((stride,) * 2, (pad,) * 2, (dilation,) * 2, groups)
    assert qualifies(weight, *settings) == replaced
    assert not qualifies(weight.double(), *settings)
    x = torch.randn(1, shape[1] * groups, 9, 9)
    plain = F.conv2d(x, weight, bias, *settings)
    assert torch.equal(fast_conv2d(x, weight, bias, *settings), plain) != replaced


def fast_net(monkeypatch, name="vgg16_aspp", *, bfloat16=False, choice="fast", **settings):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: bfloat16)
    config = load_config("mini", [f"precision={choice}"])
    torch.manual_seed(0)
    net = build_model(name, num_classes=5, width_divisor=8, **settings)
    net.fill("msra", torch.Generator().manual_seed(0))
    return precision.to_device(net, config, CPU)


@pytest.mark.parametrize(
    ("choice", "bfloat16", "used"),
    [("fast", False, True), ("fast", True, False), ("faithful", False, False), ("double", False, False)],
)
def test_only_fast_without_bfloat16_uses_it(monkeypatch, choice, bfloat16, used):
    net = fast_net(monkeypatch, choice=choice, bfloat16=bfloat16)
    kinds = {name: module for name, module in net.named_modules() if isinstance(module, Convolution)}
    replaced = {
        name
        for name, layer in kinds.items()
        if layer.function is fast_conv2d
        and qualifies(layer.weight, layer.stride, layer.pad, layer.dilation, layer.group)
    }
    expected = {name for name in kinds if name.startswith(("conv", "fc6")) and name != "conv1_1"}
    assert replaced == (expected if used else set())


def test_the_cost_rule_asks_for_work_saved():
    assert winograd.pays((1, 512, 41, 41), 512, 1)
    assert winograd.pays((1, 512, 41, 41), 1024, 24)
    assert winograd.pays((1, 64, 321, 321), 64, 1)
    assert not winograd.pays((1, 8, 41, 41), 8, 1)  # the transforms would cost more than they save


def test_training_in_fast_follows_faithful(monkeypatch):
    monkeypatch.setattr(winograd, "pays", lambda *_: True)  # the net is too narrow for it to pay
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 65, 65, generator=generator) * 50
    labels = torch.randint(5, (2, 9, 9), generator=generator)
    losses = {}
    for choice in ("faithful", "fast"):
        net = fast_net(monkeypatch, choice=choice, dropout=0.0)
        solver = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9)  # no jumps
        losses[choice] = []
        for _ in range(8):
            loss = F.cross_entropy(net(images), labels)
            solver.zero_grad()
            loss.backward()
            solver.step()
            losses[choice].append(loss.item())
    assert losses["fast"] == pytest.approx(losses["faithful"], rel=WINOGRAD_LOSS_REL)
    assert losses["fast"] != losses["faithful"]
    assert losses["fast"][-1] < losses["fast"][0]


def test_no_values_no_winograd(monkeypatch):
    """On the meta device shapes alone are computed; an exporter's trace holds the plain convolution."""
    monkeypatch.setattr(winograd, "pays", lambda *_: True)

    class Layer(nn.Conv2d):
        def forward(self, x):
            return fast_conv2d(x, self.weight, self.bias, (1, 1), (1, 1), (1, 1), 1)

    layer = Layer(8, 16, 3)
    x = torch.randn(2, 8, 9, 9)
    graph = torch.export.export(layer, (x,)).graph
    assert "conv2d" in str(graph)
    assert "conv" in str(torch.jit.trace(layer, x).inlined_graph)
    assert layer.to("meta")(x.to("meta")).shape == (2, 16, 9, 9)
