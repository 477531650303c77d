"""The layers of SEC and DSRG that PyTorch does not have, one file a subject, each under its paper's name."""

from repro.layers.caffe_losses import sigmoid_cross_entropy_loss
from repro.layers.crf_params import CRFParams
from repro.layers.dense_crf import crf_log, mean_field, refine
from repro.layers.interp import interp
from repro.layers.localization import (
    activation_maps,
    foreground_cells,
    gradient_saliency,
    lowest_cells,
    merge_cells,
)
from repro.layers.losses import (
    balanced_seed_loss,
    constrain_loss,
    expand_loss,
    seed_loss,
)
from repro.layers.region_growing import grow_seeds
from repro.layers.softmax import caffe_softmax

__all__ = [
    "CRFParams",
    "activation_maps",
    "balanced_seed_loss",
    "caffe_softmax",
    "constrain_loss",
    "crf_log",
    "expand_loss",
    "foreground_cells",
    "gradient_saliency",
    "grow_seeds",
    "interp",
    "lowest_cells",
    "mean_field",
    "merge_cells",
    "refine",
    "seed_loss",
    "sigmoid_cross_entropy_loss",
]
