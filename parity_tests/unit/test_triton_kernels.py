"""The Triton kernels as machine code for an H100 or H200 (sm_90), which takes no such device to make."""

from __future__ import annotations

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("triton") is None:
    pytest.skip("Triton is not installed (it comes with PyTorch's CUDA builds)", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from repro.layers import permutohedral_triton, region_growing_triton

FLOATS, LONGS, INT, FLOAT = "*fp32", "*i64", "i32", "fp32"
SPLAT = {
    **dict.fromkeys(("q", "norm", "shares", "values"), FLOATS),
    **dict.fromkeys(("starts", "rows", "count"), LONGS),
    **dict.fromkeys(("columns", "classes"), INT),
}
BLUR = {
    **dict.fromkeys(("values", "blurred"), FLOATS),
    **dict.fromkeys(("neighbours", "count"), LONGS),
    **dict.fromkeys(("axis", "absent", "columns", "classes"), INT),
}
KERNEL = {"offsets": LONGS, "weights": FLOATS, "norm": FLOATS, "values": FLOATS, "alpha": FLOAT}
UPDATE = {
    "unary": FLOATS,
    "q": FLOATS,
    "roots": "*fp64",
    "rows": INT,
    "images": INT,
    "spatial_weight": FLOAT,
    "weight": FLOAT,
    **{f"{kernel}_{name}": kind for kernel in "sb" for name, kind in KERNEL.items()},
}
SPREAD = {"mapped": LONGS, "reached": "*i32", "height": INT, "width": INT}


def compiled(kernel, signature: dict[str, str], constants: dict, warps: int) -> tuple[str, int]:
    """A kernel's PTX, and the bytes of a thread's stack, which hold what its registers cannot."""
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    options = {"num_warps": warps, "enable_fp_fusion": False}
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm
    cubin = Path(triton.knobs.cache.dir, "kernel.cubin")
    cubin.write_bytes(code["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", usage)
    assert found, usage
    return code["ptx"], int(found[1])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("classes", [2, 21, 81])
@pytest.mark.parametrize("name", ["splat", "blur", "update"])
def test_mean_field_rounds_each_product_and_fits_into_registers(name, classes):
    module = permutohedral_triton
    lanes = module.lanes_of(classes)
    vertices = module.vertices_at_once(lanes)
    kernel, signature, constants = {
        "splat": (module.splat, SPLAT, {"V": vertices, "L": lanes, "A": module.AHEAD}),
        "blur": (module.blur, BLUR, {"V": vertices, "L": lanes}),
        "update": (
            module.update_rows,
            UPDATE,
            {"MESSAGES": True, "C": classes, "R": module.PIXELS, "L": lanes},
        ),
    }[name]
    ptx, stack = compiled(kernel, signature, constants, warps=1)
    assert not re.search(r"\bfma\.", ptx)
    assert stack == 0


def test_flood_fits_into_registers():
    block = triton.next_power_of_2(41 * 41)
    warps = region_growing_triton.warps_of(block)
    assert compiled(region_growing_triton.spread, SPREAD, {"B": block}, warps)[1] == 0
