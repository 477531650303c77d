"""Numbers that all parts share."""

MEAN_BGR = (104.0, 117.0, 123.0)
"""``mean_value`` of the train prototxts, in the order of the channels: blue, green, red."""

VOID = 255
"""The index of pixels that count nowhere (object borders, padding) and of cells without a cue; ``ignore_label``."""

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""VOC's 21 classes in the order of their indices."""

TOLERANCE = 1e-5
"""How far a blob may be from Caffe's in a comparison, as a share of its largest value."""

PRODUCER = "sec-dsrg-repro"
"""What an ONNX file of ours says made it: the field ``producer_name``."""
