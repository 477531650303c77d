"""Caffe's losses and the layers that only report."""
