#!/usr/bin/env python
"""Write a recording of a net's blobs as your Caffe computes them, for repro check and repro.parity.

    python record_blobs.py deploy.prototxt net.caffemodel blobs.h5                       # random input
    python record_blobs.py deploy.prototxt net.caffemodel blobs.h5 --image cat.jpg --mean 104 117 123
    python record_blobs.py deploy.prototxt net.caffemodel blobs.h5 --npy data=x.npy --backward

One file that runs where Caffe runs: Python 2.7 or 3, with pycaffe and h5py alone. The recording is HDF5. A slash in a
name of Caffe's is written %2F, a percent sign %25.

    prototxt, phase         the net's text, and TRAIN or TEST
    inputs/<blob>           what was put into the net
    blobs/<blob>            every blob as the forward pass leaves it
    top_diff/<blob>         with --backward: what was written into each output before it; a loss keeps its weight
    input_diff/<blob>       the gradients of the inputs, where Caffe computes them
    param_diff/<layer>/<i>  the gradients of the parameters, in Caffe's blob order

A net without a loss goes backward where its prototxt says "force_backward: true". Dropout in phase TRAIN draws other
numbers in every program: leave it out of what you record.
"""

from __future__ import print_function

import argparse
import io
import os
import re
import sys

import h5py
import numpy as np


def escaped(name):
    return name.replace("%", "%25").replace("/", "%2F")


def read_arguments(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="\n".join(__doc__.split("\n")[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prototxt")
    parser.add_argument("weights", help=".caffemodel or .caffemodel.h5")
    parser.add_argument("out", help="the recording, an .h5 file that is not there yet")
    parser.add_argument(
        "--image", help="for the first input, in its size: (BGR, 0-255, less --mean) times --scale"
    )
    parser.add_argument("--mean", type=float, nargs=3, default=[0.0, 0.0, 0.0], metavar=("B", "G", "R"))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument(
        "--npy", action="append", default=[], metavar="BLOB=FILE", help="an input from a .npy file"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of random inputs: all others, between -128 and 128"
    )
    parser.add_argument("--phase", choices=["TEST", "TRAIN"], default="TEST")
    parser.add_argument("--backward", action="store_true", help="record gradients, too")
    parser.add_argument("--gpu", type=int, help="run on this GPU (the recording is then that of cuDNN)")
    return parser.parse_args(arguments)


def read_image(caffe, path, shape, mean, scale):
    """An image as a blob of this shape: (1 or more, 3, height, width), the same for each item."""
    if len(shape) != 4 or shape[1] != 3:
        sys.exit("%s: the first input has the shape %s, not that of images" % (path, tuple(shape)))
    rgb = caffe.io.load_image(path)  # 0 to 1
    bgr = caffe.io.resize_image(rgb, tuple(shape[2:]))[:, :, ::-1] * 255.0
    planes = (bgr - np.array(mean)).transpose(2, 0, 1) * scale
    return np.repeat(planes[np.newaxis], shape[0], axis=0)


def fill_inputs(caffe, net, options):
    """Put values into the net's inputs."""
    files = dict(each.partition("=")[::2] for each in options.npy)
    for name in files:
        if name not in net.inputs or not files[name]:
            sys.exit(
                "--npy %s: expected BLOB=FILE; the net's inputs: %s" % (name, ", ".join(net.inputs) or "none")
            )
    random = np.random.RandomState(options.seed)
    for index, name in enumerate(net.inputs):
        shape = tuple(net.blobs[name].data.shape)
        if name in files:
            values = np.load(files[name], allow_pickle=False)
            net.blobs[name].reshape(*values.shape)
        elif options.image and index == 0:
            values = read_image(caffe, options.image, shape, options.mean, options.scale)
        else:
            values = random.uniform(-128, 128, shape)
        net.blobs[name].data[...] = values


def run(caffe, options, prototxt):
    """What is recorded, by path in the file."""
    is_forced = re.search(r"^[^#\n]*\bforce_backward\s*:\s*true", prototxt, re.MULTILINE)
    if options.gpu is None:
        caffe.set_mode_cpu()
    else:
        caffe.set_device(options.gpu)
        caffe.set_mode_gpu()
    net = caffe.Net(
        options.prototxt, options.weights, caffe.TRAIN if options.phase == "TRAIN" else caffe.TEST
    )
    found = {}

    def keep(group, names, values):
        found["/".join([group] + [escaped(name) for name in names])] = np.array(values, dtype=np.float32)

    fill_inputs(caffe, net, options)
    for name in net.inputs:
        keep("inputs", [name], net.blobs[name].data)
    # a loss carries its weight in its gradient from the start
    losses = [name for name in net.outputs if np.any(net.blobs[name].diff)]
    if options.backward and not (losses or is_forced):
        sys.exit("%s: no loss; Caffe then goes backward with force_backward: true alone" % options.prototxt)
    net.forward()
    for name, blob in net.blobs.items():
        keep("blobs", [name], blob.data)
    if options.backward:
        random = np.random.RandomState(options.seed + 1)
        for name in net.outputs:
            if is_forced and name not in losses:
                values = random.uniform(-1, 1, net.blobs[name].diff.shape)
                net.blobs[name].diff[...] = values
                keep("top_diff", [name], values)
        net.backward()
        for name in net.inputs:
            if np.any(net.blobs[name].diff):
                keep("input_diff", [name], net.blobs[name].diff)
        for layer, parameters in net.params.items():
            for index, parameter in enumerate(parameters):
                keep("param_diff", [layer, str(index)], parameter.diff)
    return found


def main(arguments=None):
    options = read_arguments(arguments)
    if os.path.exists(options.out):
        sys.exit("%s: exists already" % options.out)
    os.environ.setdefault("GLOG_minloglevel", "2")
    import caffe

    with io.open(options.prototxt, encoding="utf-8") as text:
        prototxt = text.read()
    found = run(caffe, options, prototxt)
    unfinished = options.out + ".part"
    with h5py.File(unfinished, "w") as file:
        file.attrs["note"] = "blobs of Caffe, written by record_blobs.py"
        file.create_dataset("prototxt", data=np.bytes_(prototxt.encode("utf-8")))
        file.create_dataset("phase", data=np.bytes_(options.phase.encode("ascii")))
        for path, values in found.items():
            file.create_dataset(path, data=values)
    os.rename(unfinished, options.out)
    print("%s: %d arrays of %s" % (options.out, len(found), options.prototxt))


if __name__ == "__main__":
    main()
