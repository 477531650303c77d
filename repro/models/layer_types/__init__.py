"""The layer types, small files by subject. Importing this package registers them all."""

from repro.models.layer_types import (  # noqa: F401
    activations,
    convolution,
    data,
    elementwise,
    losses,
    normalisation,
    pooling,
    python,
)
