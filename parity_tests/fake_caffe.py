"""A module with the surface of pycaffe that tools/record_blobs.py uses, whose nets are ours."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import torch

from repro.data.images import read_image_rgb
from repro.layers.resize import zoom_to
from repro.models import load_net

TRAIN, TEST = 0, 1


class Blob:
    def __init__(self, shape) -> None:
        self.data, self.diff = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def reshape(self, *shape) -> None:
        self.__init__(shape)


class Net:
    def __init__(self, prototxt: str, weights: str, phase: int) -> None:
        self.net = net = load_net(prototxt, weights, phase="test" if phase == TEST else "train")
        self.inputs, self.outputs = list(net.inputs), net.outputs
        self.blobs = OrderedDict((name, Blob(shape)) for name, shape in net.shapes.items())
        self.params = OrderedDict(
            (
                layer,
                [SimpleNamespace(data=each.detach().numpy(), diff=np.zeros(each.shape)) for each in blobs],
            )
            for layer, blobs in net.params.items()
        )
        for layer in net.layers:
            for top, weight in zip(layer.tops, layer.loss_weights, strict=True):
                self.blobs[top].diff[...] = weight

    def forward(self) -> None:
        self.given = {name: torch.from_numpy(self.blobs[name].data).requires_grad_() for name in self.inputs}
        self.found = self.net.forward_blobs(self.given)
        for name, values in self.found.items():
            if values.shape != self.blobs[name].data.shape:
                self.blobs[name].reshape(*values.shape)
            self.blobs[name].data[...] = values.detach()

    def backward(self) -> None:
        diffs = [torch.from_numpy(self.blobs[name].diff) for name in self.outputs]
        torch.autograd.backward([self.found[name] for name in self.outputs], diffs)
        for name, leaf in self.given.items():
            self.blobs[name].diff[...] = 0 if leaf.grad is None else leaf.grad
        for layer, blobs in self.net.params.items():
            for parameter, blob in zip(self.params[layer], blobs, strict=True):
                parameter.diff[...] = 0 if blob.grad is None else blob.grad


def set_mode_cpu() -> None:
    pass


io = SimpleNamespace(
    load_image=lambda path: read_image_rgb(path).astype(np.float32) / 255,
    resize_image=lambda image, size: zoom_to(image, *size, axes=(0, 1)),
)
