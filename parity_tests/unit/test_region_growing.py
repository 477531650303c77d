"""Region growing beyond the recordings (those are in test_layers.py): random problems, every way to flood."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from repro.bench.reference import grow_seeds_in_python
from repro.layers import grow_seeds
from repro.layers.region_growing import flood, flood_by_steps

THRESHOLDS = [(0.85, 0.99), (0.5, 0.7), (0.7, 0.5), (float("inf"), 0.5), (0.3, float("inf"))]


def problem(seed: int, count: int = 3, classes: int = 6, height: int = 13, width: int = 17):
    """Labels, probabilities with patches of confidence, and cues that overlap and name absent classes too."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, classes)) < 0.6).astype(np.float32)
    logits = np.kron(rng.normal(0, 6, (count, classes, height // 3 + 1, width // 3 + 1)), np.ones((3, 3)))
    logits = logits[..., :height, :width] + rng.normal(0, 1, (count, classes, height, width))
    refined = torch.softmax(torch.from_numpy(logits).float(), dim=1)
    cues = (rng.random((count, classes, height, width)) < 0.1).astype(np.float32)
    return torch.from_numpy(labels), refined, torch.from_numpy(cues)


@pytest.mark.parametrize("thresholds", THRESHOLDS)
@pytest.mark.parametrize("seed", range(4))
def test_growing_is_the_plain_one(seed, thresholds):
    theta_f, theta_b = thresholds
    labels, refined, cues = problem(seed)
    want = grow_seeds_in_python(labels.numpy(), refined.numpy(), cues.numpy(), theta_f, theta_b)
    got = grow_seeds(labels, refined, cues, theta_f=theta_f, theta_b=theta_b)
    np.testing.assert_array_equal(got.numpy(), want)


def test_growing_takes_any_strides_and_types():
    labels, refined, cues = problem(5)
    want = grow_seeds(labels, refined, cues)
    strided = refined.to(memory_format=torch.channels_last)
    got = grow_seeds(labels.double()[:, :, None, None], strided, cues.bool())
    assert got.dtype == torch.bool
    assert torch.equal(got.float(), want)


def snake(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One path of class 1 back and forth over the whole map, to be flooded from its beginning."""
    mapped = torch.zeros(1, size, size, dtype=torch.int64)
    mapped[:, ::2] = 1
    for number, row in enumerate(range(1, size - 1, 2)):
        mapped[:, row, -1 if number % 2 == 0 else 0] = 1
    start = torch.zeros_like(mapped, dtype=torch.bool)
    start[0, 0, 0] = True
    return mapped, start


def floods(length: int = 11) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(-1, 3, (2, 9, 15), generator=generator)
    some = (torch.rand(2, 9, 15, generator=generator) < 0.05) & (patches >= 0)
    return [
        ("random", patches, some),
        ("snake", *snake(length)),
        ("one row", patches[:, :1], some[:, :1]),
        ("nothing to begin with", patches, torch.zeros_like(some)),
    ]


def test_a_flood_reaches_the_end_of_a_long_path():
    mapped, start = snake(41)
    assert torch.equal(flood(mapped, start), mapped == 1)


@pytest.mark.parametrize(("name", "mapped", "start"), floods(), ids=[case[0] for case in floods()])
def test_flood_in_torch_operations(name, mapped, start):
    assert torch.equal(flood_by_steps(mapped, start), flood(mapped, start))


def check_triton(device: str, length: int) -> None:
    from repro.layers.region_growing_triton import flood as flood_in_triton

    for name, mapped, start in floods(length):
        got = flood_in_triton(mapped.to(device), start.to(device)).cpu()
        assert torch.equal(got, flood(mapped, start)), name


@pytest.mark.cuda
def test_triton_kernel():
    if not (torch.cuda.is_available() and find_spec("triton")):
        pytest.skip("no CUDA device with Triton")
    check_triton("cuda", 41)


@pytest.mark.cuda
@pytest.mark.parametrize("seed", range(4))
def test_growing_on_cuda(seed):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    labels, refined, cues = problem(seed, count=20, classes=21, height=41, width=41)
    got = grow_seeds(labels.cuda(), refined.cuda(), cues.cuda())
    assert got.device.type == "cuda"
    assert torch.equal(got.cpu(), grow_seeds(labels, refined, cues))


@pytest.mark.parametrize("name", ["theta_f", "theta_b"])
@pytest.mark.parametrize("value", [85, 1.01, -0.5, float("nan")])
def test_a_threshold_is_a_probability(name, value):
    labels, refined = torch.ones(1, 2), torch.full((1, 2, 3, 3), 0.5)
    with pytest.raises(ValueError, match=f"{name} {value}: expected a probability"):
        grow_seeds(labels, refined, torch.zeros(1, 2, 3, 3), **{name: value})
