"""Where the recordings and the sample are, and how a comparison fails."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from repro.data import mini
from repro.data.mini import build_mini


def onnxruntime_providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return onnxruntime.get_available_providers()


HERE = Path(__file__).parent
ROOT = HERE.parent
GOLDEN = HERE / "golden"
CAFFE_FILES = GOLDEN / "caffe_files"
REPRODUCE_MINI = ("reproduce", "--config", "mini", "device=cpu", "dataset.pretrain=null")
NEEDS_CUDA_PROVIDER = pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime_providers(),
    reason="needs a CUDA device and onnxruntime-gpu",
)
SHARED = Path(os.environ.get("REPRO_SHARED", ROOT.parent / "shared"))  # images and weights of others
WHOLE_MINI = dict(build_mini.__kwdefaults__)
# an embedded set of any size has the same first images, and no test but a long one looks at more than these
build_mini.__kwdefaults__.update(train=60, val=8)
DRAW_SCENE, SIDES = mini._draw_scene, mini._SIDES
mini._SIDES = (80, 145)  # smaller images are sooner drawn and segmented
_drawn: dict[tuple[int, ...], tuple[Any, Any]] = {}


def draw_once(rng: np.random.Generator) -> Any:
    """Sets of one seed begin with the same images: a process draws each once, `DRAW_SCENE` every time."""
    key = tuple(rng.bit_generator.state["state"].values())
    if key not in _drawn:
        _drawn[key] = (DRAW_SCENE(rng), rng.bit_generator.state)
    scene, rng.bit_generator.state = _drawn[key]
    return tuple(array.copy() for array in scene)


mini._draw_scene = draw_once
os.fsync = lambda handle: None  # ten thousand waits for the disk; no test lives through a power cut


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported stays: without this, the collector walks a million objects again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # nanobind, under onnx, would report what is left at the end


@contextmanager
def held_by_another(folder: Path) -> Iterator[int]:
    """While entered, another process has the folder's lock; its number."""
    held = f"lock_folder(Path({str(folder)!r})); print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys; from pathlib import Path; from repro.files import lock_folder\n{held}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout.readline() == b"held\n"
        yield other.pid
    finally:
        other.communicate()


@pytest.fixture(scope="session")
def golden():
    """``golden("layers")`` opens ``golden/layers.h5``, read-only, once a session."""
    opened: dict[str, h5py.File] = {}

    def open_once(name: str) -> h5py.File:
        if name not in opened:
            opened[name] = h5py.File(GOLDEN / f"{name}.h5", "r")
        return opened[name]

    yield open_once
    for file in opened.values():
        file.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with ImageNet's convolutions, real images and recordings at full width; not part of the repository."""
    if not (SHARED / "weights" / "vgg16_conv.caffemodel").is_file():
        pytest.skip(
            f"no weights/vgg16_conv.caffemodel in {SHARED} (set REPRO_SHARED to the folder that holds it)"
        )
    return SHARED


@pytest.fixture(scope="session")
def voc_sample() -> Path:
    """The folder ``voc-sample`` with real VOC images and the SEC authors' cues; not part of the repository."""
    sample = SHARED / "voc-sample"
    if not (sample / "VOCdevkit" / "VOC2012" / "JPEGImages").is_dir():
        pytest.skip(f"no VOC sample at {sample} (set REPRO_SHARED to the folder that holds voc-sample/)")
    return sample


@pytest.fixture(scope="session")
def mini_root(tmp_path_factory) -> Path:
    """The embedded set of profile ``mini``, built once for all of pytest's processes. Nothing may change it.

    Whoever needs one to change, or to have it found, copies the folder: building it takes ten times as long.
    """
    from repro.cli import run_command

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with (base / "mini.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_command(["data", "mini", str(base / "mini")]) == 0
        return base / "mini"


@contextmanager
def without_figures() -> Iterator[None]:
    """While entered, results folders have no figures, which take seconds; ``test_page.py`` looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repro.report.build.draw_figures", lambda *_: [])
        yield


@pytest.fixture
def no_figures():
    with without_figures():
        yield


@pytest.fixture
def blank_figures(monkeypatch):
    """Figures are laid out but not drawn, which takes the time: their files are there and empty.

    Those whose names are added to the list are drawn.
    """
    from repro.report import figures

    whole, drawn = figures.save, []

    def save(figure, base: Path) -> None:
        if base.name in drawn:
            whole(figure, base)
            return
        base.parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("png", "svg"):
            base.with_name(f"{base.name}.{suffix}").touch()

    monkeypatch.setattr(figures, "save", save)
    return drawn


@pytest.fixture
def tool(monkeypatch):
    """tools/record_blobs.py as a module, on a stand-in for pycaffe."""
    from parity_tests import fake_caffe

    monkeypatch.setitem(sys.modules, "caffe", fake_caffe)
    spec = spec_from_file_location("record_blobs", ROOT / "tools" / "record_blobs.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def to_numpy(array) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def assert_close(got, want, bound: float, what: str, *, relative_to_max: bool = False) -> None:
    """Fail with the worst and the first place that differ: index, both values, how many there are."""
    got, want = to_numpy(got), to_numpy(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, recorded {want.shape}"
    got, want = got.astype(np.float64), want.astype(np.float64)
    limit = bound * max(float(np.abs(want).max(initial=0.0)), 1e-30) if relative_to_max else bound
    difference = np.abs(got - want)
    wrong = ~(difference <= limit)  # NaN counts as wrong
    if not wrong.any():
        return
    if want.ndim == 0:
        raise AssertionError(f"{what}: {got} against {want} recorded, difference {difference} > {limit:.3g}")
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    worst = tuple(int(i) for i in np.unravel_index(np.nanargmax(difference), difference.shape))
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {wrong.size} values differ by more than {limit:.3g}; "
        f"first at {first}: {got[first]!r} against {want[first]!r} recorded; "
        f"worst at {worst}: {got[worst]!r} against {want[worst]!r}"
    )
