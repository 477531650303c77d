"""Nets: any that a prototxt describes, and the papers' by name."""

from repro.models.net import CaffeNet, load_net
from repro.models.registry import register
from repro.models.zoo import CLASSIFIERS, SEGMENTATION_NETS, build_model
from weights_conversion.caffemodel import write_caffemodel
from weights_conversion.mapping import load_caffe_weights

__all__ = [
    "CLASSIFIERS",
    "SEGMENTATION_NETS",
    "CaffeNet",
    "build_model",
    "load_caffe_weights",
    "load_net",
    "register",
    "write_caffemodel",
]
