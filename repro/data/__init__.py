"""Images, masks, cues and the data layers of both training stages."""

from repro.data.images import (
    MEAN_BGR,
    preprocess_zoomed,
    read_image_bgr,
    read_image_rgb,
    resize_bilinear_u8,
    subtract_mean,
    zoom_linear,
    zoom_to,
)

__all__ = [
    "MEAN_BGR",
    "preprocess_zoomed",
    "read_image_bgr",
    "read_image_rgb",
    "resize_bilinear_u8",
    "subtract_mean",
    "zoom_linear",
    "zoom_to",
]
