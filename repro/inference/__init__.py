"""The releases' test protocols, masks of a folder of images, and their scores."""

from repro.inference.predict import predict_mask

__all__ = ["predict_mask"]
