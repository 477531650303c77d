"""What ``precision`` means for a net on a device.

    faithful   float32 throughout; TF32 off, deterministic cuDNN algorithms
    double     float64 throughout: tells a difference in the arithmetic from one in the rounding
    fast       the net's convolutions in bfloat16, TF32 for what float32 is left, cuDNN picks its algorithms by timing
               them where sizes do not change; weights, history, solver and every layer after the scores stay float32.
               On a CPU without bfloat16 instructions the convolutions stay float32, those of 3x3 by Winograd's method

Images and weights lie in channels-last layout, which CPUs and a GPU's bfloat16 are about twice as fast at. On a GPU
float32, and images of many sizes, lie in PyTorch's own, in which cuDNN is several times as fast at them
(docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from repro.config import RunConfig
from repro.models import CaffeNet
from repro.models.layer_types.convolution import Convolution

# names of bfloat16 arithmetic among a CPU's capabilities, on x86-64 and on Arm
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16")


def to_device(model: CaffeNet, config: RunConfig, device: torch.device, *, one_size: bool = True) -> CaffeNet:
    """Move ``model`` to ``device`` in ``config.precision``; sets the process's TF32 and cuDNN flags to match.

    ``one_size``: whether its images are all of a few sizes. cuDNN times its algorithms anew for every layer and size,
    which costs more than it brings where the size changes from image to image; it chooses by its tables then, which
    are good for PyTorch's own layout.
    """
    fast = config.precision == "fast"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fast
    torch.backends.cudnn.benchmark = fast and one_size
    torch.backends.cudnn.deterministic = not fast
    model.autocast = torch.bfloat16 if fast and has_bfloat16(device) else None
    winograd = fast and device.type == "cpu" and not has_bfloat16(device)
    for layer in model.modules():
        if isinstance(layer, Convolution):
            layer.compute_by(_fast_conv2d() if winograd else None)
    plain = device.type == "cuda" and (model.autocast is None or not one_size)
    return lay_out(model.to(device, config.dtype), channels_last=not plain)


def lay_out(model: CaffeNet, *, channels_last: bool) -> CaffeNet:
    """Lay out the weights, and from now on the images."""
    model.channels_last = channels_last
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(memory_format=layout)  # type: ignore[call-overload]


def _fast_conv2d() -> Callable[..., torch.Tensor]:
    from repro.layers.winograd import fast_conv2d  # here, as it imports Numba

    return fast_conv2d


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 rather than imitating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 does not say
    return any(capabilities.get(name) for name in _BFLOAT16)
