"""The steps of an experiment: train, infer, evaluate, and the chain of them."""

from repro.stages.evaluate import confusion_matrix, mean_iou
from repro.stages.infer import predict_mask

__all__ = ["confusion_matrix", "mean_iou", "predict_mask"]
