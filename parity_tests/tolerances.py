"""Every bound that a parity test holds its piece to, in one place.

A bound is never widened to make a test pass: when a number is off, the first place that differs is the bug.
``*_REL`` bounds are relative to the largest absolute value of the recorded array, the others are absolute.
"""

LAYER = 1e-5  # outputs and gradients of the stage-1 layers, Interp
CRF_MARGINALS = 1e-5
CRF_LOG = 1e-4
NETWORK_BLOB_REL = 1e-5
SOLVER = 1e-6
STAGE1_LOSS = 1e-4  # both losses, each of the 30 recorded iterations
RETRAIN_LOSS = 1e-4  # each of the 16 recorded iterations
MASK_PIXELS = 1e-4  # share of a mask's pixels that may differ
ZOOM = 1e-6  # relative to the values' range (0–255 images, unit noise)
