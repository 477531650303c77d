"""The mean-field engine against densecrf itself (through pydensecrf) and against the recordings."""

from __future__ import annotations

import platform
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from parity_tests.conftest import assert_close
from parity_tests.tolerances import CRF_MARGINALS
from repro.layers import CRFParams, mean_field_engine, permutohedral, permutohedral_torch
from repro.layers.dense_crf import MIN_PROB, TRAINING_SCALE, images_for_crf
from repro.layers.mean_field_engine import mean_field_lattice

PATHS = ("numba", "torch")
PICTURES = ("noise", "flat", "grey", "ramps", "black")
SIZES = ((41, 41, 12.0), (37, 22, 1.0), (13, 17, 12.0), (1, 50, 1.0), (50, 1, 1.0), (1, 1, 1.0), (2, 1, 12.0))
MEAN = np.array([104, 117, 123], dtype=np.float32)


def picture(kind: str, count: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(count, height, width, 3) uint8."""
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    if kind == "flat":
        images[:] = rng.integers(0, 256, (count, 1, 1, 3))
    elif kind == "grey":
        images = images[..., :1].repeat(3, axis=-1)
    elif kind == "ramps":
        rows, columns = np.mgrid[:height, :width]
        images[:] = np.clip((2 * rows + columns)[..., None] + np.array([0, 40, 90]), 0, 255)
    elif kind == "black":
        images[:] = 0
    return images


def problem(
    kind: str, count: int, classes: int, height: int, width: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and unaries; noise in the unary, the hardest case: every pixel is decided by its neighbours."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(picture(kind, count, height, width, rng))
    return images, torch.from_numpy(rng.standard_normal((count, classes, height, width)).astype(np.float32))


def densecrf(images: torch.Tensor, unary: torch.Tensor, params: CRFParams) -> torch.Tensor:
    """The oracle, one image after the other."""
    oracle = pytest.importorskip(
        "pydensecrf.densecrf",
        reason="pydensecrf is not installed (it needs a C++ compiler): no oracle to compare with",
    )
    count, classes, height, width = unary.shape
    kernel = {"kernel": oracle.DIAG_KERNEL, "normalization": oracle.NORMALIZE_SYMMETRIC}
    marginals = torch.empty_like(unary)
    for n in range(count):
        crf = oracle.DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(np.ascontiguousarray(-unary[n].reshape(classes, -1).numpy()))
        crf.addPairwiseGaussian(sxy=params.spatial_xy / params.scale, compat=params.spatial_weight, **kernel)
        crf.addPairwiseBilateral(
            sxy=params.bilateral_xy / params.scale,
            srgb=params.bilateral_rgb,
            rgbim=np.ascontiguousarray(images[n].numpy()),
            compat=params.bilateral_weight,
            **kernel,
        )
        result = np.array(crf.inference(params.iterations))
        marginals[n] = torch.from_numpy(result).reshape(classes, height, width)
    return marginals


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("path", PATHS)
def test_any_picture_and_size(path, kind):
    for height, width, scale in SIZES:
        images, unary = problem(kind, 2, 21, height, width)
        params = CRFParams(scale=scale)
        got = mean_field_lattice(images, unary, params, path=path)
        assert got.dtype == torch.float32
        assert_close(
            got, densecrf(images, unary, params), CRF_MARGINALS, f"{kind}, {height}x{width}, scale {scale:g}"
        )


@pytest.mark.parametrize("path", PATHS)
def test_any_number_of_classes(path):
    """Up to two classes densecrf takes another order of operations, and classes % 4 another exponential."""
    for classes in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 20, 81):
        images, unary = problem("ramps", 1, classes, 19, 23, seed=classes)
        params = CRFParams(scale=12)
        got = mean_field_lattice(images, unary, params, path=path)
        assert_close(got, densecrf(images, unary, params), CRF_MARGINALS, f"{classes} classes")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "params",
    [
        CRFParams(iterations=0),
        CRFParams(iterations=1, scale=12),
        CRFParams(
            iterations=5,
            bilateral_weight=4,
            bilateral_xy=49,
            bilateral_rgb=5,
            spatial_weight=2,
            spatial_xy=1.5,
        ),
        CRFParams(bilateral_rgb=300, scale=0.1),
        CRFParams(bilateral_rgb=1, bilateral_xy=2, spatial_xy=0.3),
        CRFParams(bilateral_weight=0),
    ],
    ids=lambda params: f"{params.iterations}-{params.bilateral_rgb}-{params.bilateral_weight}",
)
def test_any_parameters(path, params):
    images, unary = problem("noise", 1, 5, 24, 31)
    got = mean_field_lattice(images, unary, params, path=path)
    assert_close(got, densecrf(images, unary, params), CRF_MARGINALS, str(params))


@pytest.mark.parametrize("path", PATHS)
def test_unaries_of_any_range(path):
    images, unary = problem("ramps", 1, 7, 15, 18)
    for factor, offset in ((1e-3, 0.0), (40.0, 0.0), (1.0, 1e4), (1.0, -1e4)):
        scaled = unary * factor + offset
        scaled[0, 3, 2:5] = -1e6
        got = mean_field_lattice(images, scaled, CRFParams(scale=12), path=path)
        assert_close(
            got, densecrf(images, scaled, CRFParams(scale=12)), CRF_MARGINALS, f"{factor}·u + {offset}"
        )


@pytest.mark.parametrize(("path", "height", "width"), [("numba", 375, 500), ("torch", 94, 125)])
def test_whole_images(path, height, width):
    images, _ = problem("noise", 1, 1, height // 20 + 1, width // 20 + 1)
    images = images.repeat_interleave(20, 1).repeat_interleave(20, 2)[:, :height, :width].contiguous()
    _, unary = problem("noise", 1, 21, height, width)
    got = mean_field_lattice(images, unary, CRFParams(), path=path)
    assert_close(got, densecrf(images, unary, CRFParams()), CRF_MARGINALS, f"{height}x{width}")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="densecrf is other code elsewhere")
@pytest.mark.parametrize("path", PATHS)
def test_bit_for_bit(path):
    """Close is not enough for an iteration that amplifies the last bit: it agrees because it is the same arithmetic."""
    images, unary = problem("noise", 2, 21, 41, 41, seed=3)
    params = CRFParams(scale=12)
    assert_close(
        mean_field_lattice(images, unary, params, path=path), densecrf(images, unary, params), 0, path
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["scene", "noise", "small"])
def test_recordings(golden, path, name):
    scene = golden("layers")[name]
    blob = torch.from_numpy((scene["image_bgr"][()].astype(np.float32) - MEAN).transpose(0, 3, 1, 2).copy())
    probs = torch.from_numpy(scene["probs"][()].astype(np.float32))
    images = images_for_crf(blob, *probs.shape[-2:])
    marginals = mean_field_lattice(
        images, probs.clamp_min(MIN_PROB), CRFParams(scale=TRAINING_SCALE), path=path
    )
    refined = marginals.clamp_min(MIN_PROB)
    assert_close(refined / refined.sum(1, keepdim=True), scene["refined"], CRF_MARGINALS, f"{name} refined")


@pytest.mark.parametrize("path", PATHS)
def test_batch_is_its_images(path):
    parts = [problem(kind, 1, 6, 21, 18, seed) for seed, kind in enumerate(PICTURES)]
    images, unary = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    params = CRFParams(scale=12)
    together = mean_field_lattice(images, unary, params, path=path)
    alone = torch.cat([mean_field_lattice(*part, params, path=path) for part in parts])
    assert_close(together, alone, 0, "batch against one by one")
    assert_close(mean_field_lattice(images, unary, params, path=path), together, 0, "the second time")


def test_parts_of_a_large_batch(monkeypatch):
    images, unary = problem("noise", 5, 3, 9, 8)
    whole = mean_field_lattice(images, unary, CRFParams(), path="torch")
    monkeypatch.setattr(mean_field_engine, "CORNERS_AT_ONCE", 2 * 6 * 9 * 8)
    assert_close(
        mean_field_lattice(images, unary, CRFParams(), path="torch"), whole, 0, "two images at a time"
    )


def test_number_of_threads_does_not_matter():
    images, unary = problem("noise", 5, 21, 41, 41)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(mean_field_lattice(images, unary, CRFParams(scale=12)))
    finally:
        torch.set_num_threads(threads)
    assert_close(results[1], results[0], 0, "three threads against one")


@pytest.mark.parametrize("path", PATHS)
def test_layout_and_dtype_of_the_arguments(path):
    images, unary = problem("grey", 2, 4, 10, 12)
    want = mean_field_lattice(images, unary, CRFParams(), path=path)
    images_nchw = images.permute(0, 3, 1, 2).contiguous()
    unary_nhwc = unary.to(memory_format=torch.channels_last).double().requires_grad_()
    got = mean_field_lattice(images_nchw.permute(0, 2, 3, 1), unary_nhwc, CRFParams(), path=path)
    assert_close(got, want, 0, "strided, double")
    assert not got.requires_grad
    assert mean_field_lattice(images[:0], unary[:0], CRFParams(), path=path).shape == (0, 4, 10, 12)


def test_what_is_kept_is_bounded():
    for cache in (mean_field_engine.spatial_lattice_cpu, mean_field_engine.spatial_lattice):
        cache.cache_clear()
    for width in range(1, 20):
        for path in PATHS:
            mean_field_lattice(*problem("noise", 1, 2, 2, width), CRFParams(iterations=1), path=path)
    for cache in (mean_field_engine.spatial_lattice_cpu, mean_field_engine.spatial_lattice):
        assert cache.cache_info().currsize == cache.cache_info().maxsize == mean_field_engine.LATTICES_KEPT


def test_devices_are_not_waited_for():
    """On the meta device there are no values: whatever asked for one would fail."""
    meta = torch.device("meta")
    spatial = mean_field_engine.spatial_lattice(5, 7, 3.0, torch.device("cpu"))
    spatial = spatial._replace(
        **{
            name: value.to(meta)
            for name, value in spatial._asdict().items()
            if isinstance(value, torch.Tensor)
        }
    )
    bilateral = mean_field_engine.geometry(5, 7, 80.0, 13.0, meta)
    images, unary = (tensor.to(meta) for tensor in problem("noise", 2, 4, 5, 7))
    arguments = (spatial, bilateral, (3.0, 10.0), 2, permutohedral_torch)
    marginals = permutohedral_torch.mean_field_torch(images, unary, *arguments)
    assert marginals.shape == (2, 4, 5, 7)
    assert marginals.device == meta


@pytest.mark.parametrize("sd_rgb", [None, 13.0, 1.0])
def test_keys_have_room(sd_rgb):
    """Every vertex and every neighbour has a key of its own: none falls out of its digits."""
    features = permutohedral.features(19, 33, 0.4, sd_rgb)
    images = torch.from_numpy(picture("noise", 1, 19, 33, np.random.default_rng(0))).permute(1, 2, 0, 3)
    images[0, 0], images[18, 32] = 0, 255
    geometry = permutohedral_torch.geometry(features, torch.device("cpu"))
    keys, weights = permutohedral_torch.locate(geometry, images.reshape(-1, 1, 3))
    assert_close(weights.sum(-1), torch.ones(features.points, 1), 1e-4, "barycentric weights")
    for stride, after in zip(features.strides, [*features.strides[1:], features.keys], strict=True):
        digits = keys % after // stride
        assert digits.min() >= (stride < features.strides[-1])
        assert digits.max() < after // stride - (stride < features.strides[-1])


def test_parameters_out_of_range():
    images, unary = problem("noise", 1, 2, 30, 30)
    for path in PATHS:
        with pytest.raises(ValueError, match="too small for 30x30"):
            mean_field_lattice(images, unary, CRFParams(bilateral_rgb=1e-3), path=path)


def test_compiles_where_nothing_can_be_written():
    from repro.layers.numba_lanes import entry

    names: dict = {}
    exec(compile("def plus_one(x): return x + 1", "<no file>", "exec"), names)
    assert entry(names["plus_one"])(1) == 2


def check_triton(device: str) -> None:
    """Triton's kernels against torch's operations."""
    for classes, height, width, count in ((21, 5, 7, 2), (1, 3, 3, 1), (5, 1, 17, 1), (81, 3, 4, 2)):
        images, unary = (tensor.to(device) for tensor in problem("ramps", count, classes, height, width))
        params = CRFParams(iterations=3, scale=12)
        got = mean_field_lattice(images, unary, params, path="triton")
        want = mean_field_lattice(images, unary, params, path="torch")
        assert_close(got, want, CRF_MARGINALS, f"{classes} classes, {count} of {height}x{width}")


def check_triton_interpreted() -> None:
    from repro.layers import permutohedral_triton

    # the interpreter is slow, program by program: a few large ones
    permutohedral_triton.PROGRAMS, permutohedral_triton.VERTICES, permutohedral_triton.PIXELS = 2, 256, 64
    permutohedral_triton.LANES = 2**15
    check_triton("cpu")


@pytest.mark.cuda
def test_triton_kernels():
    if not (torch.cuda.is_available() and find_spec("triton")):
        pytest.skip("no CUDA device with Triton")
    check_triton("cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("path", ["torch", None])
def test_cuda(path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for kind in PICTURES:
        images, unary = problem(kind, 3, 21, 41, 41)
        want = mean_field_lattice(images, unary, CRFParams(scale=12))
        got = mean_field_lattice(images.cuda(), unary.cuda(), CRFParams(scale=12), path=path)
        again = mean_field_lattice(images.cuda(), unary.cuda(), CRFParams(scale=12), path=path)
        assert got.device.type == "cuda"
        assert_close(got, want, CRF_MARGINALS, kind)
        assert_close(again, got, 0, f"{kind}, the second time")
