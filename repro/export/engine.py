"""What ``repro export`` and ``repro predict --engine onnx`` do."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from repro.config import Config, PredictConfig
from repro.data import read_image_rgb
from repro.errors import InputError, chosen, damaged
from repro.export import PrecisionName, ScriptGraph
from repro.export.agreement import Agreement, measure
from repro.export.onnx import export_onnx
from repro.inference.predict import describe, load_model
from repro.models import CLASSIFIERS
from weights_conversion.files import file_sha256

if TYPE_CHECKING:
    from repro.export.runtime import OnnxSegmenter  # needs onnxruntime, exporting does not

MEASURED_IMAGES = 8  # of a folder, for the loss of fp16 and int8
CUDA_BATCH = 8


def export_file(
    config: Config,
    weights: Path,
    path: Path,
    *,
    device: torch.device,
    graph: ScriptGraph,
    precision: PrecisionName = "fp32",
    classifier: str | None = None,
    check: Mapping[str, Path] | None = None,
    truth: Path | None = None,
) -> Agreement | None:
    """Export the config's net with weights from a file; the protocol is ``config.inference.protocol``.

    Args:
        classifier: one of ``CLASSIFIERS`` instead of the config's net, of its classes without the background.
        device: where ``check`` runs, both in PyTorch and in onnxruntime.
        check: images to compare the export with PyTorch on, by name; ``fp16`` and ``int8`` need some. What comes out
            goes into the model's metadata as well.
        truth: folder of ground-truth masks of these images.

    Returns:
        The comparison, if there was one.

    Raises:
        InputError: anything that does not fit; nothing is written then.
    """
    if precision != "fp32" and not check:
        raise InputError(
            f"precision {precision} is other arithmetic than the papers': name images to measure the loss on (--images)"
        )
    if config.precision != "faithful":
        raise InputError(f"precision={config.precision}: an export starts from the float32 net (faithful)")
    classes = config.dataset.classes
    if classifier is not None:
        chosen("--net", classifier, CLASSIFIERS)
        classes = classes[1:]
    model = load_model(config, weights, device, classifier)
    measured: list[Agreement] = []

    def verify(written: Path) -> dict[str, str]:
        if check:
            from repro.export.runtime import OnnxSession, providers_for

            session = OnnxSession(written, providers_for(device))
            measured.append(measure(model, session, check, truth))
        return {"agreement": measured[0].as_json()} if measured else {}

    export_onnx(
        model,
        path,
        graph=graph,
        protocol=config.inference.protocol,
        precision=precision,
        classes=classes,
        weights=weights,
        verify=verify,
    )
    return measured[0] if measured else None


def open_segmenter(
    config: Config,
    weights: Path,
    script: PredictConfig,
    images: Mapping[str, Path],
    *,
    device: torch.device,
    precision: PrecisionName | None = None,
    batch_size: int | None = None,
) -> tuple[OnnxSegmenter, dict[str, Any], str]:
    """An engine for ``predict_folder``: of an exported model, or of weights that are exported on the way.

    Args:
        weights: an ``.onnx`` of graph ``multiscale``, or a weight file of the config's net.
        script: the protocol that the model must follow, and whether the CRF runs.
        images: what will be segmented; the first readable ones measure the loss of ``fp16`` and ``int8``.
        precision: of the layers; that of an ``.onnx`` is in the file.
        batch_size: 1 on the CPU and 8 on CUDA by default.

    Returns:
        The engine, the settings that decide its masks, and one line about the precision's loss ("" for ``fp32``).

    Raises:
        InputError: what does not fit, a provider that is missing or does not start.
    """
    from repro.export.runtime import OnnxSegmenter, providers_for

    if config.precision == "double":
        raise InputError("precision=double: the onnx engine computes in float32, faithful or fast expected")
    options: dict[str, Any] = {
        "crf": script.crf,
        "batch_size": batch_size or (CUDA_BATCH if device.type == "cuda" else 1),
    }
    providers = providers_for(device, tf32=config.precision == "fast")
    if weights.suffix == ".onnx":
        segmenter = OnnxSegmenter(weights, providers, **options)
        metadata = segmenter.session.metadata
        for key, expected, option in (
            ("protocol", script.protocol, "inference.protocol="),
            ("precision", precision or metadata["precision"], "--precision "),
        ):
            if metadata[key] != expected:
                raise InputError(
                    f"{weights}: exported with {key} {metadata[key]}, {expected} asked for; "
                    f"pass {option}{metadata[key]} or export it again"
                )
        loss = ""
        if metadata["precision"] != "fp32":
            with damaged(weights, "a measurement of 'repro export' in its metadata"):
                measured = json.loads(metadata.get("agreement", '{"summary": "never measured"}'))["summary"]
            loss = f"precision {metadata['precision']}: when it was exported, {measured}"
        described = {
            "onnx_sha256": file_sha256(weights),
            "precision": metadata["precision"],
            **script.model_dump(),
        }
    else:
        precision = precision or "fp32"
        faithful = config.model_copy(
            update={
                "precision": "faithful",
                "inference": config.inference.model_copy(update={"protocol": script.protocol}),
            }
        )
        check = _first_readable(images) if precision != "fp32" else {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            measured_now = export_file(
                faithful, weights, path, device=device, graph="multiscale", precision=precision, check=check
            )
            segmenter = OnnxSegmenter(path, providers, **options)
        loss = f"precision {precision}: {measured_now.summary()}" if measured_now else ""
        described = {**describe(config, weights, script), "precision": precision}
    return segmenter, {**described, "engine": "onnx", "tf32": config.precision == "fast"}, loss


def _first_readable(images: Mapping[str, Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    problem: InputError | None = None
    for name, path in images.items():
        try:
            read_image_rgb(path)
        except InputError as error:
            problem = problem or error
            continue
        found[name] = path
        if len(found) == MEASURED_IMAGES:
            break
    if not found and problem:
        raise problem
    return found
