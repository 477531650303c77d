"""Imports go down only, in the order below, imports for types and inside functions included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from parity_tests.conftest import ROOT

# each imports what stands before it; beside one another on a line: neither imports the other
ORDER = [
    {"weights_conversion"},  # imports nothing of repro
    {"repro.__version__", "repro.constants", "repro.errors", "repro.measure", "repro.profiles"},
    {"repro.files", "repro.distributed", "repro.yaml12", "repro.metrics"},
    {"repro.layers"},
    {"repro.models"},
    {"repro.config"},
    {"repro.precision", "repro.solver"},
    {"repro.run_folder", "repro.data"},
    {"repro.fetch", "repro.training", "repro.parity"},
    {"repro.inference"},
    {"repro.cues", "repro.export"},
    {"repro.paper"},
    {"repro.run"},
    {"repro.report", "repro.bench"},
    {"repro.cli"},
    {"repro.__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
HEAVY = (
    "numba",
    "llvmlite",
    "h5py",
    "PIL",
    "pycocotools",
    "ijson",
    "scipy",
    "pydantic",
    "yaml",
    "google",
    "safetensors",
)


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    _module(path): path
    for folder in ("repro", "weights_conversion")
    for path in (ROOT / folder).rglob("*.py")
}


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of everything of ours that a file imports; ``from a import b`` is a.b where that is a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            joined = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES or node.module == "repro" else str(node.module) for name in joined]
        else:
            continue
        for name in names:
            if name.partition(".")[0] in ("repro", "weights_conversion"):
                yield node.lineno, name


def _part(module: str) -> str:
    """The package below ``repro``, or the module there, that a module belongs to."""
    return ".".join(module.split(".")[: 2 if module.startswith("repro.") else 1])


def test_imports_go_down_only():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {_part(module)} imports {name}"
        for module, path in FILES.items()
        if module != "repro"
        for line, name in _imports(path)
        if _part(name) != _part(module) and not RANK[_part(name)] < RANK[_part(module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_layers_load_torch_and_numpy_alone():
    code = f"import sys, repro.layers; print([name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert loaded.stdout == "[]\n"
