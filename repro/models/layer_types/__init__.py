"""The layer types, small files by subject. Importing this package registers them all."""

from repro.models.layer_types import (  # noqa: F401
    activations,
    convolution,
    data,
    elementwise,
    interp,
    local_norms,
    losses,
    normalisation,
    pooling,
    python,
    rearrange,
    reductions,
)
