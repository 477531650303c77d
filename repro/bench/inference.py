"""PyTorch and ONNX Runtime on the same images, in turns: the network alone, and image to mask without the CRF.

Faithful is float32 with TF32 off on both sides. Fast is PyTorch's ``precision=fast`` against onnxruntime's float16 on
CUDA; on a CPU, where float16 and int8 gain nothing, onnxruntime's float32 stands against it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from repro.bench.inputs import Inputs
from repro.bench.timing import Timer, Timing
from repro.config import Config, PredictConfig
from repro.inference.predict import TorchSegmenter
from repro.models import CaffeNet
from repro.precision import lay_out, to_device

SIDE = 321
CUDA_BATCH = 8
SINGLE_SCALE = PredictConfig(protocol="sec", crf=False)  # the script with one scale


def inference_rows(config: Config, inputs: Inputs, timer: Timer) -> Iterator[Timing]:
    """Rows for the CPU and, where ``timer`` has one, for CUDA; each with PyTorch's time as reference.

    ``config`` gives the net; what is compared does not depend on its precision. There are no rows where onnx or
    onnxruntime is not installed, and none for CUDA without CUDA's provider.
    """
    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        return
    net = config.build_net().eval()
    net.fill("msra", torch.Generator().manual_seed(0))
    devices = [torch.device("cpu")]
    if timer.device.type == "cuda":
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            devices.append(timer.device)
    with TemporaryDirectory(prefix="repro-bench-") as folder:
        for device in devices:
            batches = (1, CUDA_BATCH) if device.type == "cuda" else (1,)
            bench = _DeviceBench(config, net, Timer(device, seconds=timer.seconds), Path(folder))
            for batch in batches:
                yield from bench.network(batch)
            for batch in batches:
                yield from bench.masks(np.stack([inputs.pictures[0]] * batch))
            bench.faithful()  # the process's flags as they were


class _DeviceBench:
    def __init__(self, config: Config, net: CaffeNet, timer: Timer, folder: Path) -> None:
        self.config, self.net, self.timer, self.folder = config, net, timer, folder
        self.device = timer.device
        self.where = "CUDA" if self.device.type == "cuda" else "CPU"
        self.fast_precision = "fp16" if self.device.type == "cuda" else "fp32"

    def faithful(self) -> CaffeNet:
        return self._model("faithful")

    def _model(self, precision: str) -> CaffeNet:
        """A copy of the net; sets the process's flags, so what it is for comes before the next one."""
        return to_device(
            copy.deepcopy(self.net), self.config.model_copy(update={"precision": precision}), self.device
        )

    def _exported(self, graph: str, precision: str) -> Path:
        from repro.export.onnx import export_onnx

        path = self.folder / f"{graph}_{precision}.onnx"
        if not path.exists():
            export_onnx(self.net, path, graph=graph, protocol=SINGLE_SCALE.protocol, precision=precision)  # type: ignore[arg-type]
        return path

    def network(self, batch: int) -> Iterator[Timing]:
        """Scores of ``batch`` blobs of 321x321 that are on the device."""
        from repro.export.runtime import OnnxSession, providers_for

        images = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 60
        images = images.to(self.device)
        shape = (batch, self.config.model.num_classes, *self.net.grid_size(SIDE, SIDE))

        def ours(precision: str) -> Callable[[], object]:
            session = OnnxSession(self._exported("scores", precision), providers_for(self.device))
            return lambda: session.run(images, shape)

        def pytorch(model: CaffeNet) -> Callable[[], object]:
            def run() -> object:
                with torch.inference_mode():
                    return model(images)

            return run

        what = f"network {SIDE}x{SIDE}"
        yield self._row(what, batch, "fp32", ours("fp32"), "PyTorch", pytorch(self.faithful()))
        contiguous = pytorch(lay_out(self.faithful(), channels_last=False))
        yield self._row(what, batch, "fp32", ours("fp32"), "PyTorch default layout", contiguous)
        fast = pytorch(self._model("fast"))
        precision = self.fast_precision
        yield self._row(what, batch, precision, ours(precision), "PyTorch fast", fast)

    def masks(self, pictures: np.ndarray) -> Iterator[Timing]:
        """Bytes to masks at one scale of 321x321, without the CRF."""
        from repro.export.runtime import OnnxSegmenter, providers_for

        height, width = pictures.shape[1:3]
        for precision, name in (("faithful", "fp32"), ("fast", self.fast_precision)):
            model = TorchSegmenter(self._model(precision), SINGLE_SCALE)
            segmenter = OnnxSegmenter(
                self._exported("multiscale", name),
                providers_for(self.device),
                crf=False,
                batch_size=len(pictures),
            )
            yield self._row(
                f"{width}x{height} bytes to mask",
                len(pictures),
                name,
                lambda segmenter=segmenter: segmenter.masks(pictures),  # type: ignore[misc]
                "PyTorch" if precision == "faithful" else "PyTorch fast",
                lambda model=model: model.masks(pictures),  # type: ignore[misc]
            )

    def _row(
        self,
        what: str,
        batch: int,
        precision: str,
        work: Callable[[], object],
        reference: str,
        reference_work: Callable[[], object],
    ) -> Timing:
        part = f"{what}, batch {batch}, ONNX Runtime {self.where} {precision}, {reference}"
        row = self.timer.against(part, work, reference, reference_work)
        assert row.reference_seconds is not None
        return replace(
            row,
            metrics={
                "images/s": batch / row.seconds,
                "images/s of the reference": batch / row.reference_seconds,
            },
        )
