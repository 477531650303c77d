"""In which memory layout a net's images and weights lie."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from repro import precision
from repro.bench import training
from repro.bench.inputs import inputs
from repro.bench.timing import Timer
from repro.config import load_config
from repro.models import CaffeNet, build_model

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
LAYOUTS = {None: torch.contiguous_format, True: torch.channels_last, False: torch.contiguous_format}


@pytest.fixture
def net() -> CaffeNet:
    return build_model("vgg16_aspp", num_classes=3, width_divisor=64)


@pytest.mark.parametrize(
    ("device", "choice", "bfloat16", "one_size", "channels_last"),
    [
        (CPU, "faithful", False, True, True),
        (CPU, "double", False, False, True),
        (CPU, "fast", True, False, True),
        (GPU, "faithful", True, True, False),
        (GPU, "double", True, True, False),
        (GPU, "fast", True, True, True),
        (GPU, "fast", True, False, False),
        (GPU, "fast", False, True, False),
    ],
)
def test_which_layout_a_precision_has(net, monkeypatch, device, choice, bfloat16, one_size, channels_last):
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: bfloat16)
    move = nn.Module.to
    monkeypatch.setattr(CaffeNet, "to", lambda net, *args, **kwargs: move(net, *args[1:], **kwargs))
    config = load_config("mini", [f"precision={choice}"])
    precision.to_device(net, config, device, one_size=one_size)
    assert net.channels_last is channels_last
    assert net["conv1_2"].weight.is_contiguous(memory_format=LAYOUTS[channels_last])


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last])
def test_a_net_lays_its_images_out(net, channels_last, given):
    """The caller's are left as they are, and gradients reach them."""
    seen: list[torch.Tensor] = []
    net["conv1_1"].register_forward_pre_hook(lambda _, bottoms: seen.append(bottoms[0]))
    images = torch.randn(2, 3, 33, 33).contiguous(memory_format=given).requires_grad_()
    net.channels_last = channels_last
    net(images).sum().backward()
    assert seen[0].is_contiguous(memory_format=given if channels_last is None else LAYOUTS[channels_last])
    assert images.is_contiguous(memory_format=given)
    assert images.grad is not None


def test_a_net_on_a_device_can_be_saved_whole(net):
    precision.to_device(net.eval(), load_config("mini"), CPU)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    images = torch.randn(1, 3, 33, 33)
    assert torch.equal(torch.load(file, weights_only=False)(images), net(images))


def test_the_benchmark_predicts_as_predictions_do(monkeypatch):
    """Photographs are of many sizes."""
    sizes: list[bool] = []

    def moved(net: CaffeNet, config: object, device: object, *, one_size: bool) -> CaffeNet:
        sizes.append(one_size)
        return net

    monkeypatch.setattr(training, "to_device", moved)
    monkeypatch.setattr(training, "predict_mask", lambda *args, **kwargs: None)
    monkeypatch.setattr(training, "mean_field", lambda *args, **kwargs: None)
    config = load_config("mini", ["model.width_divisor=64"])
    with inputs(1, config.model.num_classes, (5, 5)) as given:
        list(training.prediction_rows(config, given, Timer(CPU, seconds=0.001), references=False))
    assert sizes == [False]
