"""Sizes that Caffe's messages hold once, once an axis, or as ``_h`` and ``_w``."""

from __future__ import annotations

from repro.models.registry import Layer
from weights_conversion.lift import is_repeated


def spatial(layer: Layer, field: str, axes: int, default: int | None = None) -> tuple[int, ...]:
    """Kernel, stride, pad or dilation for each spatial axis, from ``layer.p``; ``default`` where nothing is set.

    ``field`` is the repeated or single field's name (``kernel_size``); its pair is ``kernel_h`` and ``kernel_w``. As in
    Caffe it is one or the other, and all but a pad are 1 or more.
    """
    values = _stated(layer, field, axes, default)
    if field != "pad" and min(values) < 1:
        layer.fail(field, f"{min(values)}, expected 1 or more")
    return values


def _stated(layer: Layer, field: str, axes: int, default: int | None) -> tuple[int, ...]:
    message, stem = layer.p, field.removesuffix("_size")
    pair = [f"{stem}_{side}" for side in "hw"]
    known = message.DESCRIPTOR.fields_by_name
    single = not is_repeated(known[field])
    once = [getattr(message, field)] if single and message.HasField(field) else []
    values = once if single else list(getattr(message, field))
    if all(name in known for name in pair) and any(message.HasField(name) for name in pair):
        if values:
            layer.fail(field, f"beside {stem}_h or {stem}_w, expected one or the other")
        if axes != 2:
            layer.fail(pair[0], f"for {axes} spatial axes; it is for 2")
        missing = [name for name in pair if not message.HasField(name)]
        if missing and (default is None or single):  # of a convolution's pad the other is then 0
            layer.fail(missing[0], f"missing beside {stem}_h or {stem}_w")
        return tuple(getattr(message, name) for name in pair)
    if not values and default is None:
        layer.fail(field, "missing")
    values = values or [default]
    if len(values) not in (1, axes):
        layer.fail(field, f"{len(values)} values for {axes} spatial axes")
    return tuple(values * axes if len(values) == 1 else values)


def dilation(layer: Layer, axes: int) -> tuple[int, ...]:
    """The dilation of a convolution_param for each spatial axis, which DeepLab-v1 calls hole."""
    p = layer.p
    holes = any(p.HasField(name) for name in ("hole_h", "hole_w")) or p.hole
    if holes and p.dilation:
        layer.fail("hole", "beside dilation, expected one or the other")
    return spatial(layer, "hole" if holes else "dilation", axes, 1)
