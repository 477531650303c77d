"""Running exported models with onnxruntime, as an engine of ``repro.inference.batch_predict.predict_folder``.

Images go to the device once, as bytes. onnxruntime writes the probabilities into memory of PyTorch there, our dense
CRF works on them in place, and what comes back are the masks.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from repro.errors import InputError, damaged, line_of
from repro.export.head import Head
from repro.inference.memory import SMALL, crf_memory, refuse_beyond
from repro.inference.predict import PROTOCOLS, decide, mask_of_grids, refuse_beyond_memory
from weights_conversion.files import check_plain

try:
    import onnxruntime
except ImportError as error:
    raise InputError(
        "running ONNX models needs the package onnxruntime: pip install onnxruntime, or onnxruntime-gpu for CUDA"
    ) from error

Provider = str | tuple[str, Mapping[str, Any]]
_CUDA_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
# TF32 is onnxruntime's default and keeps 10 of float32's 23 bits. Timing every algorithm at every new image size,
# its other default, costs more than it brings where sizes change from image to image.
_CUDA_DEFAULTS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


def open_session(
    path: Path,
    providers: Sequence[tuple[str, Mapping[str, Any]]] = (("CPUExecutionProvider", {}),),
    *,
    model: bytes | None = None,
) -> Any:
    """onnxruntime's session of a file, or of a ``model`` made of it; on CUDA without TF32, unless the options say so.

    Raises:
        InputError: no such file, or one that onnxruntime cannot load.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # what matters of its warnings is checked here
    check_plain(path)
    if not path.is_file():
        raise InputError(f"{path}: no such model file")
    try:
        return onnxruntime.InferenceSession(
            model or os.fspath(path),
            options,
            providers=[name for name, _ in providers],
            provider_options=[
                {**(_CUDA_DEFAULTS if name == "CUDAExecutionProvider" else {}), **settings}
                for name, settings in providers
            ],
            enable_fallback=0,  # it prints what the file holds, and tries again
        )
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise InputError(f"{path}: onnxruntime cannot load it: {line_of(error)}") from error


class OnnxSession:
    """An exported model in onnxruntime on the device of its first provider.

    Args:
        path: a file that ``repro export`` wrote; of any graph.
        providers: onnxruntime's execution providers in order of preference, names or (name, options). All of them
            must be active: there is no silent fallback to the CPU. On CUDA, TF32 is off unless the options say so.

    ``metadata`` holds what the exporter wrote (``repro.export.onnx.METADATA_KEYS``), ``classes`` the names in it,
    ``device`` the PyTorch device. ``open(model=…)`` gives onnxruntime's session of a model that was made of this one.

    Raises:
        InputError: a provider that is not installed or does not start, a file that is no model of ours.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        providers: Sequence[Provider] = ("CPUExecutionProvider",),
    ) -> None:
        self.path = Path(path)
        chosen = [(item, {}) if isinstance(item, str) else (item[0], dict(item[1])) for item in providers]
        self.device = _device(chosen)
        self.open = partial(open_session, self.path, chosen)
        self._session = self.open()
        active = self._session.get_providers()
        if inactive := [name for name, _ in chosen if name not in active]:
            raise InputError(
                f"provider {inactive[0]} did not start; onnxruntime would have run on {', '.join(active)} instead"
            )
        with damaged(path, "a model of 'repro export'"):
            self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
            outputs, inputs = self._session.get_outputs(), self._session.get_inputs()
            self.classes: list[str] = json.loads(self.metadata.get("classes", "[]"))
            if not isinstance(self.classes, list) or not all(isinstance(name, str) for name in self.classes):
                raise ValueError("its classes are not names")
        self.graph = self.metadata.get("graph", "")
        names = [value.name for value in (*inputs, *outputs)]
        if names != ["images", self.graph] or "parameters_sha256" not in self.metadata:
            raise InputError(
                f"{self.path}: not a model of 'repro export' (inputs and outputs {', '.join(names)})"
            )
        self._name = outputs[0].name

    def run(self, images: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The model's result for ``images``, both on ``device``; no copy on the way.

        Args:
            images: uint8 or float32, as the graph takes them.
            shape: of the result, float32.

        Raises:
            InputError: more than fits into the device's memory, or images that the model cannot take.
        """
        images = images.to(self.device).contiguous()
        place = (self.device.type, self.device.index or 0)
        with _images_named(self, images.shape):
            result = torch.empty(tuple(shape), dtype=torch.float32, device=self.device)
            binding = self._session.io_binding()
            dtype = np.uint8 if images.dtype == torch.uint8 else np.float32
            binding.bind_input("images", *place, dtype, tuple(images.shape), images.data_ptr())
            binding.bind_output(self._name, *place, np.float32, tuple(shape), result.data_ptr())
            if self.device.type == "cuda":  # onnxruntime computes on a stream of its own
                torch.cuda.current_stream(self.device).synchronize()
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        return result


class OnnxSegmenter:
    """A ``multiscale`` model as an engine of ``predict_folder``.

    Args:
        path, providers: see ``OnnxSession``.
        crf: run the dense CRF, by our engine on the model's device.
        batch_size: the most images of equal size that one run takes.

    Raises:
        InputError: as ``OnnxSession``, and a model of another graph.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        providers: Sequence[Provider] = ("CPUExecutionProvider",),
        *,
        crf: bool = True,
        batch_size: int = 1,
    ) -> None:
        self.session = OnnxSession(path, providers)
        if self.session.graph != "multiscale":
            raise InputError(
                f"{path}: graph {self.session.graph!r}, a model exported with graph 'multiscale' expected"
            )
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: expected 1 or more")
        _check_finite(Path(path))
        self.crf = crf
        self.batch_size = batch_size
        protocol, precision = (self.session.metadata.get(key) for key in ("protocol", "precision"))
        if protocol not in PROTOCOLS or not precision:
            raise InputError(
                f"{path}: protocol {protocol!r} and precision {precision!r} in its metadata, one of "
                f"{', '.join(PROTOCOLS)} and fp32, fp16 or int8 expected; export it again"
            )
        self.protocol = PROTOCOLS[protocol]
        self.num_classes = len(self.session.classes)
        if not self.num_classes:
            raise InputError(f"{path}: no classes in its metadata, their names expected; export it again")
        self._head: Head | None = None  # for large images, made with the first of them
        if self.session.device.type == "cuda":
            # one black image, so that what happens once, and what can fail, has happened
            self.masks(np.zeros((1, 64, 64, 3), np.uint8))

    def probs(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Floored probabilities (N, C, H, W) float32, on the device, of images (N, H, W, 3) uint8 RGB."""
        pictures = _checked(images)
        count, height, width, _ = pictures.shape
        return self.session.run(pictures, (count, self.num_classes, height, width))

    def masks(self, images: np.ndarray, labels: Sequence[Sequence[int]] | None = None) -> np.ndarray:
        """Masks (N, H, W) uint8 of images (N, H, W, 3) uint8 RGB.

        ``labels``: class ids of each image; where given, only they and background (0) can win.
        Raises InputError for other images, a label outside the classes, and more than fits into memory.
        """
        pictures = _checked(np.ascontiguousarray(images)).to(self.session.device)
        as_read = pictures.flip(-1) if self.protocol.reads_bgr else pictures
        if math.prod(images.shape[1:3]) < SMALL:
            probs = self.probs(pictures)
            with refuse_beyond_memory(images):
                return decide(probs, as_read, crf=self.crf, labels=labels)
        return np.stack(
            [
                self._large_mask(image[None], picture, labels[index] if labels else None)
                for index, (image, picture) in enumerate(zip(images, as_read, strict=True))
            ]
        )

    def _large_mask(
        self, image: np.ndarray, picture: torch.Tensor, labels: Sequence[int] | None
    ) -> np.ndarray:
        """A mask whose probabilities are made in strips, by PyTorch, of what the graph's net gives."""
        if self._head is None:
            self._head = Head.of(self.session.path, self.protocol)
            self._head_session = self.session.open(model=self._head.model)
        height, width = image.shape[1:3]
        zooms = self.protocol.zooms(height, width)
        net = int(self._head.pixel_bytes * max(rows * columns for rows, columns in zooms) * height * width)
        crf = crf_memory(image.shape, self.num_classes) if self.crf else 0
        refuse_beyond(net, crf, image.shape, self.session.device)
        with _images_named(self.session, image.shape):
            found = self._head_session.run(self._head.names, {"images": image})
        grids = [torch.from_numpy(grid[0]).to(picture.device) for grid in found]
        with refuse_beyond_memory(image):
            return mask_of_grids(grids, picture, self.protocol, crf=self.crf, labels=labels)


def _check_finite(path: Path) -> None:
    """Refuse weights that are no numbers, as `load_every_layer` does."""
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    with damaged(path, "a model of 'repro export'"):
        for tensor in onnx.load_model(os.fspath(path), load_external_data=False).graph.initializer:
            values = numpy_helper.to_array(tensor, str(path.parent)) if tensor.data_type in floats else 0
            if not np.isfinite(values).all():
                raise InputError(f"{path}: {tensor.name} holds NaN or infinity, finite numbers expected")


def _checked(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    pictures = torch.as_tensor(images)
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise InputError(
            f"images: expected uint8 (N, H, W, 3), found {pictures.dtype} {tuple(pictures.shape)}"
        )
    return pictures


@contextmanager
def _images_named(session: OnnxSession, shape: Sequence[int]) -> Iterator[None]:
    """Turn what onnxruntime raises over images into an InputError that names the model and their shape."""
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        size = "x".join(map(str, shape))
        raise InputError(f"{session.path}: images of {size} on {session.device}: {line_of(error)}") from error


def _device(providers: Sequence[tuple[str, dict[str, Any]]]) -> torch.device:
    """Where the first provider computes. Raises InputError for providers that are not installed."""
    installed = onnxruntime.get_available_providers()
    if not providers:
        raise InputError("providers: none given, for example CPUExecutionProvider expected")
    for name, _ in providers:
        if name not in installed:
            hint = (
                "; onnxruntime-gpu has it (pip install onnxruntime-gpu in its place)"
                if name in _CUDA_PROVIDERS
                else ""
            )
            raise InputError(f"provider {name}: this onnxruntime has {', '.join(installed)}{hint}")
    name, options = providers[0]
    if name not in _CUDA_PROVIDERS:
        return torch.device("cpu")
    index = int(options.get("device_id", 0))
    if index >= torch.cuda.device_count():
        raise InputError(
            f"provider {name}, device {index}: PyTorch sees {torch.cuda.device_count()} CUDA devices"
        )
    return torch.device("cuda", index)


def providers_for(device: torch.device, *, tf32: bool = False) -> list[Provider]:
    """The execution provider for a PyTorch device, CUDA's or the CPU's; ``tf32`` matters on CUDA alone."""
    if device.type == "cuda":
        options = {"device_id": str(device.index or 0), "use_tf32": str(int(tf32))}
        return [("CUDAExecutionProvider", options)]
    return ["CPUExecutionProvider"]
