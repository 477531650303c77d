"""Caffe-faithful reproduction of SEC (ECCV 2016) and DSRG (CVPR 2018) in PyTorch."""

__version__ = "0.1.0"
