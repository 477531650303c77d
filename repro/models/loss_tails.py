"""The loss layers behind the papers' nets, as the releases' train prototxts have them, and the rows that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weights_conversion.caffe_pb2 import LayerParameter

ROWS: dict[str, dict[str, Any]] = {
    "baseline": {"variant": "dsrg", "seed": "seed", "cues": "fixed", "constrain": True, "expand": False},
    "+BSL": {"variant": "dsrg", "seed": "balanced", "cues": "fixed", "constrain": True, "expand": False},
    "+DSRG": {"variant": "dsrg", "seed": "balanced", "cues": "grown", "constrain": True, "expand": False},
    "+Retrain": {"variant": "dsrg", "seed": "balanced", "cues": "grown", "constrain": True, "expand": False},
    "SEC": {"variant": "sec", "cues": "fixed"},  # its ablation varies which of its losses, and the pooling
}
"""Of DSRG's Table 2, and SEC: the arguments of :func:`stage1_losses` that a row means."""


def python_layer(
    name: str,
    layer: str,
    bottoms: Sequence[str],
    tops: Sequence[str],
    settings: dict[str, Any] | None = None,
    *,
    module: str = "pylayers",
    **fields: Any,
) -> LayerParameter:
    """A Python layer of the releases, with its ``settings`` as ``param_str``."""
    python = {"module": module, "layer": layer}
    if settings:
        python["param_str"] = repr(settings).replace(": inf", ": float('inf')")
    return LayerParameter(name=name, type="Python", bottom=bottoms, top=tops, python_param=python, **fields)


def stage1_losses(
    scores: str,
    *,
    variant: str = "dsrg",
    seed: str = "balanced",
    cues: str = "grown",
    constrain: bool = True,
    expand: bool = False,
    pooling: str = "weighted_rank",
    theta_f: float = 0.85,
    theta_b: float = 0.99,
    rule: str = "released",
) -> list[LayerParameter]:
    """The layers behind ``scores`` in the releases' train-s.prototxt, and those of Table 2's rows.

    They read ``images``, ``labels`` and ``cues``. Arguments are :class:`repro.config.LossConfig`'s. Of settings that no
    layer of the releases has, ``pooling`` and ``rule``, ours read them from their param_str.
    """
    probs, log_result = f"{scores}-Softmax", f"{scores}-CRF-log"
    layers = [python_layer("Softmax", "SoftmaxLayer", [scores], [probs], propagate_down=[True])]
    # DSRG's layer also raises small probabilities in place, for all layers that follow
    if constrain or cues == "grown":
        bottoms = [probs if variant == "dsrg" else scores, "images"]
        layers.append(python_layer("CRF", "CRFLayer", bottoms, [log_result], propagate_down=[True, False]))
    grown = "cues"
    if cues == "grown":
        grown, settings = "cues-new", {"th1": theta_b, "th2": theta_f}
        if rule != "released":
            settings["rule"] = rule  # type: ignore[assignment]
        bottoms = ["labels", probs, "cues", "images"]
        layers.append(python_layer("update-seed", "DSRGLayer", bottoms, [grown], settings=settings))
    if seed != "none":
        layer = "BalancedSeedLossLayer" if seed == "balanced" else "SeedLossLayer"
        layers.append(python_layer("loss-Seed", layer, [probs, grown], ["loss-Seed"], loss_weight=[1]))
    if expand:
        settings = {} if pooling == "weighted_rank" else {"pooling": pooling}  # type: ignore[dict-item]
        bottoms, tops = [probs, "labels"], ["loss-Expand"]
        layers.append(
            python_layer("loss-Expand", "ExpandLossLayer", bottoms, tops, settings, loss_weight=[1])
        )
    if constrain:
        bottoms = [probs, log_result]
        tops = ["loss-Constrain"]
        layers.append(python_layer("loss-Constrain", "ConstrainLossLayer", bottoms, tops, loss_weight=[1]))
    elif cues == "grown":
        layers.append(LayerParameter(name="silence", type="Silence", bottom=[log_result]))
    return layers


def stage2_losses(scores: str, *, label_shrink: int = 8) -> list[LayerParameter]:
    """The layers behind ``scores`` in the release's train-f.prototxt: they read ``label`` (N, 1, S, S)."""
    shrink = {"shrink_factor": label_shrink, "pad_beg": 0, "pad_end": 0}
    void, voids = {"ignore_label": 255}, {"ignore_label": [255]}
    bottoms = [scores, "label_shrink"]
    return [
        _layer("label_shrink", "Interp", ["label"], interp_param=shrink),
        _layer("loss", "SoftmaxWithLoss", bottoms, loss_weight=[1], loss_param=void),
        _layer("accuracy", "SegAccuracy", bottoms, seg_accuracy_param=voids),
    ]


def classifier_losses(scores: str, labels: str = "labels-classes") -> list[LayerParameter]:
    """The classifiers' loss on ``labels``, those without background."""
    return [_layer("loss", "SigmoidCrossEntropyLoss", [scores, labels], loss_weight=[1])]


def _layer(name: str, type_: str, bottoms: Sequence[str], **fields: Any) -> LayerParameter:
    """A layer whose top has its name."""
    return LayerParameter(name=name, type=type_, bottom=bottoms, top=[name], **fields)
