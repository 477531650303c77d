"""The Interp layer, forward and backward, against golden/interp.h5."""

from __future__ import annotations

import pytest
import torch

from parity_tests.conftest import assert_close
from parity_tests.tolerances import LAYER
from repro.layers import interp

CASES = {
    "fixed": {"height": 40, "width": 30},
    "pad": {"shrink_factor": 2, "pad_beg": -1, "pad_end": -2},
    "shrink4": {"shrink_factor": 4},
    "zoom8": {"zoom_factor": 8},
    "zoom_shrink": {"shrink_factor": 2, "zoom_factor": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_interp(golden, case):
    recorded = golden("interp")
    x = torch.from_numpy(recorded["input"][()]).requires_grad_()
    output = interp(x, **CASES[case])
    assert_close(output, recorded[case]["output"], LAYER, f"{case} output")
    output.backward(torch.from_numpy(top_diff(output)))
    assert_close(x.grad, recorded[case]["input_diff"], LAYER, f"{case} input gradient")


def top_diff(output):
    import numpy as np

    return np.sin(0.37 * np.arange(output.numel())).reshape(output.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"zoom_factor": 0}, "at least 1"),
        ({"pad_beg": 1}, "non-positive"),
        ({"height": 3}, "together"),
        ({"height": 3, "width": 3, "zoom_factor": 2}, "either"),
        ({"pad_beg": -9, "pad_end": -9}, "leave nothing"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        interp(torch.zeros(1, 1, 9, 9), **arguments)
