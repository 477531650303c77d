"""What every net here is: a list of Caffe layers, with Caffe's fillers and Caffe's per-parameter multipliers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn as nn

from repro.errors import InputError
from repro.layers.common import BatchNorm, InnerProduct, Scale
from repro.layers.pooling import CaffeAvePool, CaffeMaxPool
from repro.layers.sizes import convolved_size, pooled_size

Filler = Literal["gaussian", "msra", "lsuv", "looks_linear"]
GAUSSIAN_STD = 0.01  # weight_filler of the new layers in both releases
_LOOKS_LINEAR_GAIN, _LOOKS_LINEAR_NOISE = 0.75, 0.5


@dataclass(frozen=True)
class NetLayer:
    """A layer's place in its net: it reads the blobs ``bottoms`` and writes ``top``, one of them where it is in-place.

    What it does is the sub-module of its name.
    """

    name: str
    bottoms: tuple[str, ...]
    top: str


class CaffeNet(nn.Module):
    """A net as its prototxt has it: layers in order, joined by named blobs; sub-modules carry Caffe's layer names.

    Args:
        name: the net's name, as :func:`repro.models.build_model` and prototxts have it.
        input_size: side of the square images it is meant for, 321 in both papers. ``fixed_size`` nets take no other.

    ``layers`` is the net, ``classifiers`` names its last, score-giving layers, ``scores_blob`` what they give.
    """

    classifiers: tuple[str, ...] = ()
    autocast: torch.dtype | None = None  # of convolutions, set by repro/training/precision.py
    fixed_size = False

    def __init__(self, name: str, *, input_size: int = 321) -> None:
        super().__init__()
        self.name = name
        self.input_size = input_size
        self.layers: list[NetLayer] = []
        self._multipliers: dict[str, tuple[float, float]] = {}

    def add(self, name: str, module: nn.Module, *bottoms: str, top: str | None = None) -> str:
        """Append a layer; returns its top, which is ``name`` unless the layer works in-place on ``top``."""
        self.add_module(name, module)
        layer = NetLayer(name, bottoms, top or name)
        self.layers.append(layer)
        return layer.top

    @property
    def scores_blob(self) -> str:
        return self.layers[-1].top

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores, the blob ``scores_blob``, of mean-subtracted BGR images (N, 3, H, W), in their dtype.

        They are (N, C, H', W'), of a classifier (N, C).

        Raises:
            InputError: a net of fixed size gets another one.
        """
        if self.autocast is None:
            return self._run(images, self._last_readers())[self.scores_blob]
        with torch.autocast(images.device.type, self.autocast):
            return self._run(images, self._last_readers())[self.scores_blob].to(images.dtype)

    def forward_some(self, images: torch.Tensor, *names: str) -> list[torch.Tensor]:
        """The named blobs, in the images' dtype; arguments as for ``forward``. No other is kept longer than needed."""
        readers = {blob: layer for blob, layer in self._last_readers().items() if blob not in names}
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            blobs = self._run(images, readers)
        return [blobs[name].to(images.dtype) for name in names]

    def forward_blobs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every blob by its Caffe name, as Caffe leaves it (an in-place ReLU has run); arguments as for ``forward``.

        The copies that Caffe makes of a blob with several readers are there too, under Caffe's names.
        """
        blobs = self._run(images, {})
        for blob, copies in split_names((layer.name, layer.bottoms, (layer.top,)) for layer in self.layers):
            blobs |= dict.fromkeys(copies, blobs[blob])
        return blobs

    def gradient_at(self, images: torch.Tensor, layer: str) -> torch.Tensor:
        """The gradient of the summed scores at the output of ``layer``, in its shape; nothing is added to ``.grad``.

        Where an in-place ReLU follows, it is the gradient below it, which is what Caffe leaves in the blob they
        share. For saliency put the net in evaluation mode: ``net.gradient_at(images, "conv4_1")``.
        """
        found: list[torch.Tensor] = []

        def start_here(module: nn.Module, inputs: object, result: torch.Tensor) -> torch.Tensor:
            found.append(result.detach().requires_grad_())
            return found[0]

        handle = self.get_submodule(layer).register_forward_hook(start_here)
        try:
            with torch.enable_grad():
                total = self(images).sum()
        finally:
            handle.remove()
        return torch.autograd.grad(total, found[0])[0]

    def _last_readers(self) -> dict[str, str]:
        """The last layer to read each blob, after which nothing needs it."""
        return {bottom: layer.name for layer in self.layers for bottom in layer.bottoms}

    def _run(self, images: torch.Tensor, last_readers: dict[str, str]) -> dict[str, torch.Tensor]:
        """All blobs, but for those that their last reader in ``last_readers`` has done with."""
        if self.fixed_size and images.shape[2:] != (self.input_size, self.input_size):
            raise InputError(
                f"{self.name}: expected images of {self.input_size}x{self.input_size}, found "
                f"{'x'.join(map(str, images.shape[2:]))}; build_model(…, input_size=N) makes it for another size"
            )
        blobs = {"images": images}
        for layer in self.layers:
            result = self.get_submodule(layer.name)(*[blobs[bottom] for bottom in layer.bottoms])
            for bottom in layer.bottoms:
                if last_readers.get(bottom) == layer.name:
                    blobs.pop(bottom, None)
            blobs[layer.top] = result
        return blobs

    def grid_size(self, height: int, width: int, blob: str | None = None) -> tuple[int, int]:
        """Rows and columns of ``blob``, by default of the scores, for an input of this size (321x321 -> 41x41)."""
        sizes = {"images": (height, width)}
        for layer in self.layers:
            rows, columns = sizes[layer.bottoms[0]]
            sizes[layer.top] = _resized(self.get_submodule(layer.name), rows, columns)
        return sizes[blob or self.scores_blob]

    def fill(self, filler: Filler = "gaussian", generator: torch.Generator | None = None) -> None:
        """Fill every parameter as for a layer that no weight file holds; biases become 0, BatchNorm and Scale identity.

        Args:
            filler: ``gaussian`` is N(0, 0.01), the releases' for new layers: at VGG16's depth the signal dies in
                it, so it takes pre-trained weights below. For nets trained from scratch: ``msra`` is Caffe's
                N(0, sqrt(2 / fan_in)); ``looks_linear`` mirrors each filter, so that the net starts out as a
                linear map and deep gradients carry (Balduzzi et al., ICML 2017, "The shattered gradients
                problem"). ``lsuv`` draws as ``msra``; training then scales the layers on its first batch
                (``repro/training/measured_filler.py``).
                The classifiers are N(0, 0.01) always, N(0, 0.001) under ``looks_linear``.
                Inner products, which read all cells at once, are filled as under ``msra`` there.
            generator: the source of randomness; PyTorch's global one by default.
        """
        for layer in self.layers:
            module = self.get_submodule(layer.name)
            with torch.no_grad():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    self._fill_weight_(layer, module.weight, filler, generator)
                    if module.bias is not None:
                        module.bias.zero_()
                elif isinstance(module, (BatchNorm, Scale)):
                    for kind, blob in module.caffe_blobs().items():
                        blob.fill_(0.0 if kind in ("mean", "bias") else 1.0)

    def _fill_weight_(
        self, layer: NetLayer, weight: torch.Tensor, filler: Filler, generator: torch.Generator | None
    ) -> None:
        if layer.name in self.classifiers:
            std = GAUSSIAN_STD / 10 if filler == "looks_linear" else GAUSSIAN_STD
        elif filler == "looks_linear" and weight.ndim == 4:
            _looks_linear_(weight, generator, reads_image="images" in layer.bottoms)
            return
        else:
            std = GAUSSIAN_STD if filler == "gaussian" else (2.0 / weight[0].numel()) ** 0.5
        weight.normal_(0.0, std, generator=generator)

    def set_multipliers(self, multipliers: Mapping[str, Sequence[float]]) -> None:
        """Give parameters another (``lr_mult``, ``decay_mult``) than the papers', by name (``conv1_1.weight``).

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

        ``lr_mult``/``decay_mult``: weights 1/1, biases 2/0; classifiers 10/1 and 20/0 (train-s.prototxt and
        DeepLab-v2's for ResNet-101); blobs that are not learnt 0/0, as Caffe's solver states count them too.
        """
        groups = []
        for name, parameter in self.named_parameters():
            layer, _, kind = name.rpartition(".")
            lr_mult = (2.0 if kind == "bias" else 1.0) * (10.0 if layer in self.classifiers else 1.0)
            decay_mult = 0.0 if kind == "bias" else 1.0
            if not parameter.requires_grad:
                lr_mult = decay_mult = 0.0
            lr_mult, decay_mult = self._multipliers.get(name, (lr_mult, decay_mult))
            groups.append({"params": [parameter], "lr_mult": lr_mult, "decay_mult": decay_mult, "name": name})
        return groups


def split_names(
    layers: Iterable[tuple[str, tuple[str, ...], tuple[str, ...]]],
) -> list[tuple[str, list[str]]]:
    """The copies that Caffe inserts where a blob has several readers (``insert_splits.cpp``).

    Args:
        layers: (name, bottoms, tops) of every layer, in order. Blobs that none makes count as the net's inputs.

    Returns:
        (blob, names of its copies) in the order of their layers; an in-place layer starts a new blob of that name.
    """
    makers: dict[str, tuple[str, int]] = {}
    inputs = 0
    readers: Counter[tuple[str, str, int]] = Counter()
    for name, bottoms, tops in layers:
        for bottom in bottoms:
            if bottom not in makers:
                makers[bottom] = ("input", inputs)
                inputs += 1
            readers[(bottom, *makers[bottom])] += 1
        for index, top in enumerate(tops):
            makers[top] = (name, index)
    return [
        (blob, [f"{blob}_{maker}_{index}_split_{copy}" for copy in range(count)])
        for (blob, maker, index), count in readers.items()
        if count > 1
    ]


def _resized(module: nn.Module, rows: int, columns: int) -> tuple[int, int]:
    """The size of a layer's output; only convolution, pooling and inner product change it."""
    if isinstance(module, nn.Conv2d):
        kernel, stride, dilation = module.kernel_size[0], module.stride[0], module.dilation[0]
        pad = int(module.padding[0])
        height, width = (convolved_size(size, kernel, stride, pad, dilation) for size in (rows, columns))
        return height, width
    if isinstance(module, (CaffeMaxPool, CaffeAvePool)):
        kernel, stride, pad = (int(n) for n in (module.kernel_size, module.stride, module.padding))  # type: ignore
        height, width = (pooled_size(size, kernel, stride, pad) for size in (rows, columns))
        return height, width
    return (1, 1) if isinstance(module, InnerProduct) else (rows, columns)


def _looks_linear_(weight: torch.Tensor, generator: torch.Generator | None, *, reads_image: bool) -> None:
    """Filters in pairs w, -w that read their input in pairs likewise, around an orthogonal map at the centre tap.

    ReLU(x) - ReLU(-x) = x, so that a net of such layers is linear at first. Noise of half the msra size on all
    taps lets filters of one orientation differ; the gain keeps 8-bit images from growing on their way up.
    """
    outputs, inputs, height, width = weight.shape
    half, sources = (outputs + 1) // 2, inputs if reads_image else (inputs + 1) // 2
    side = max(half, sources)
    square = torch.randn(side, side, generator=generator, dtype=weight.dtype, device="cpu")
    filters = torch.randn(half, sources, height, width, generator=generator, dtype=weight.dtype, device="cpu")
    filters *= _LOOKS_LINEAR_NOISE / (sources * height * width) ** 0.5
    filters[:, :, height // 2, width // 2] += torch.linalg.qr(square)[0][:half, :sources]
    paired = filters if reads_image else torch.cat([filters, -filters], dim=1)[:, :inputs]
    weight.copy_(_LOOKS_LINEAR_GAIN * torch.cat([paired, -paired])[:outputs])
