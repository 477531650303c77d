"""Damaged and hostile files, and what reading one costs: run as a process of its own, which may die of it.

``python -m parity_tests.bad_input fuzz FIRST LAST`` reads seeded mutations of a small file of each kind, ``… hostile``
files made to cost time or memory. Each prints a line of JSON a file: what came of it, the seconds of CPU, and by how
many bytes the process grew beyond what it had.
"""

from __future__ import annotations

import gc
import io
import json
import random
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

from parity_tests.conftest import CAFFE_FILES
from parity_tests.fuzz_structure import scattered, varint
from repro.models.inspection import describe_file
from weights_conversion import (
    caffe_pb2,
    save_safetensors,
    write_caffemodel,
    write_solverstate,
)
from weights_conversion.errors import CaffeFileError

MIB = 1 << 20


def small_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Module()
    net.conv1_1 = nn.Conv2d(3, 4, 3)
    net.fc6 = nn.Linear(5, 6)
    return net


def saved_bytes(write: Callable[[Path], Any], suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / f"x{suffix}")
        return (Path(folder) / f"x{suffix}").read_bytes()


def pth_bytes(content: object, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _unpacked() -> bytes:
    """A blob whose values stand one by one, and one of doubles."""
    blob = b"".join(b"\x2d" + struct.pack("<f", value) for value in range(6))
    doubles = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=[3]), double_data=[1, 2, 3])
    shape = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=[2, 3])).SerializeToString()
    layer = caffe_pb2.LayerParameter(name="c", type="Convolution").SerializeToString()
    layer += b"".join(
        b"\x3a" + bytes([len(part)]) + part for part in (shape + blob, doubles.SerializeToString())
    )
    return b"\xa2\x06" + bytes([len(layer)]) + layer


def _v1() -> bytes:
    net = caffe_pb2.NetParameter.FromString((CAFFE_FILES / "vgg16_largefov_v1.caffemodel").read_bytes())
    del net.layers[8:]
    return net.SerializeToString()


HISTORY = [np.ones((2, 3), np.float32), np.zeros(3, np.float32)]

SEEDS: dict[str, Callable[[], bytes]] = {
    "toy.caffemodel": lambda: (CAFFE_FILES / "toy_iter_6.caffemodel").read_bytes(),
    "v1.caffemodel": _v1,
    "unpacked.caffemodel": _unpacked,
    "toy.caffemodel.h5": lambda: (CAFFE_FILES / "toy_iter_6.caffemodel.h5").read_bytes(),
    "ours.caffemodel.h5": lambda: saved_bytes(lambda path: write_caffemodel(small_net(), path), ".h5"),
    "toy.solverstate": lambda: (CAFFE_FILES / "toy_iter_6.solverstate").read_bytes(),
    "toy.solverstate.h5": lambda: (CAFFE_FILES / "toy_iter_6.solverstate.h5").read_bytes(),
    "ours.solverstate.h5": lambda: saved_bytes(
        lambda path: write_solverstate(path, 3, 1, HISTORY, "net"), ".h5"
    ),
    "x.safetensors": lambda: saved_bytes(
        lambda path: save_safetensors(small_net(), path, {"iteration": "3"}), ".safetensors"
    ),
    "zip.pth": lambda: pth_bytes(small_net().state_dict(), True),
    "legacy.pth": lambda: pth_bytes(small_net().state_dict(), False),
    "net.prototxt": lambda: (CAFFE_FILES / "toy_train.prototxt").read_bytes(),
    "solver.prototxt": lambda: (CAFFE_FILES / "toy_solver.prototxt").read_bytes(),
}


# --- hostile files, some megabytes each -------------------------------------------------------------------


def _field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def _net(blob: bytes) -> bytes:
    return _field(100, _field(1, b"c") + _field(7, blob))


def _shaped(count: int, values: bytes) -> bytes:
    return _net(_field(7, _field(1, varint(count))) + values)


def _nested(depth: int) -> bytes:
    content = b"\0"
    for _ in range(depth):
        content = _field(30, content)
    return content


def _header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _tensors(count: int) -> bytes:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return _header(json.dumps({f"t{index}.x": entry for index in range(count)}).encode())


def _hdf5(build: Callable[[h5py.File], None]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        build(file)
    return buffer.getvalue()


def _many_groups(file: h5py.File) -> None:
    for index in range(8000):
        file.create_group(f"data/{index}")


def _many_datasets(file: h5py.File) -> None:
    for index in range(8000):
        file[f"data/c/{index}"] = np.zeros(1, np.float32)


def _linked_often(file: h5py.File) -> None:
    file["data/c/0"] = np.zeros(100_000, np.float32)
    for index in range(1, 500):
        file[f"data/c/{index}"] = file["data/c/0"]


def _bomb(file: h5py.File) -> None:
    file.create_dataset("data/c/0", data=np.zeros(8 * MIB, np.float32), compression="gzip")


def _claim(file: h5py.File) -> None:
    file.create_dataset("data/c/0", (1 << 30,), np.float32)


def _loop(file: h5py.File) -> None:
    group = file.create_group("data/c")
    group["0"] = file["data"]
    file["data/d"] = h5py.SoftLink("/data/d")


def _pickled(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("x/version", "3")
    return buffer.getvalue()


def _inflated() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/data/0", b"\0" * (64 * MIB))
    return buffer.getvalue()


def _repeated() -> bytes:
    return pth_bytes({"conv1_1.weight": torch.zeros(1).expand(1 << 32)}, True)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "values one by one.caffemodel": lambda: _shaped(8 * MIB // 5, b"\x2d\0\0\0\0" * (8 * MIB // 5)),
    "doubles one by one.caffemodel": lambda: _shaped(8 * MIB // 9, (b"\x41" + b"\0" * 8) * (8 * MIB // 9)),
    "doubles.caffemodel": lambda: _shaped(MIB, _field(8, bytes(8 * MIB))),
    "plain.caffemodel": lambda: _shaped(2 * MIB, _field(5, bytes(8 * MIB))),
    "tiny fields.caffemodel": lambda: b"\x40\x01" * (4 * MIB),
    "empty layers.caffemodel": lambda: b"\xa2\x06\x00" * (3 * MIB),
    "named layers.caffemodel": lambda: b"".join(_field(100, _field(1, b"%06d" % i)) for i in range(300_000)),
    "tiny blobs.caffemodel": lambda: _field(100, _field(1, b"c") + _field(7, _field(5, bytes(4))) * 500_000),
    "axes.caffemodel": lambda: _net(_field(7, _field(1, b"\1" * 900_000)) + _field(5, bytes(4))),
    "huge shape.caffemodel": lambda: _shaped(2**31 - 1, _field(5, bytes(8))),
    "nested.caffemodel": lambda: _field(100, _field(1, b"c") + _nested(2000)),
    "nested blob.caffemodel": lambda: _net(b"\x2d\0\0\0\0" + _nested(2000)),
    "tiny history.solverstate": lambda: b"\x08\x01" + _field(3, _field(5, bytes(4))) * 500_000,
    "messages.prototxt": lambda: b"a{}" * MIB,
    "values.prototxt": lambda: b"a:[1" + b",1" * MIB + b"]",
    "names.prototxt": lambda: b"".join(b"a%d:1 " % index for index in range(200_000)),
    "nested.prototxt": lambda: b"a{" * MIB,
    "strings.prototxt": lambda: b"a:" + b'"\\x41"' * (MIB // 2),
    "large.prototxt": lambda: b"a: 1\n" * (4 * MIB),
    "blank.prototxt": lambda: b" \n#\n" * (MIB - 1) + b"@",
    "many.safetensors": lambda: _tensors(150_000),
    "many allowed.safetensors": lambda: _tensors(15_000),
    "nested.safetensors": lambda: _header(b'{"a":' + b"[" * 900_000),
    "groups.caffemodel.h5": lambda: _hdf5(_many_groups),
    "datasets.caffemodel.h5": lambda: _hdf5(_many_datasets),
    "linked often.caffemodel.h5": lambda: _hdf5(_linked_often),
    "bomb.caffemodel.h5": lambda: _hdf5(_bomb),
    "claim.caffemodel.h5": lambda: _hdf5(_claim),
    "loop.caffemodel.h5": lambda: _hdf5(_loop),
    "dicts.pth": lambda: _pickled(b"](" + b"}" * 500_000 + b"e"),
    "tuples.pth": lambda: _pickled(b")" + b"\x85" * 500_000),
    "long pickle.pth": lambda: _pickled(b"](" + b"K\1" * MIB + b"e"),
    "inflated.pth": _inflated,
    "repeated.pth": _repeated,
}


# --- reading and measuring --------------------------------------------------------------------------------


def read(path: Path) -> None:
    """Read a file as far as ``repro inspect`` does, which reads all of it."""
    describe_file(path)


def outcome(path: Path) -> dict[str, Any]:
    """What came of reading a file: ``read``, ``refused`` with its message, or ``wrong`` with another error."""
    gc.collect()
    before = peak(reset=True)
    start = time.process_time()
    try:
        read(path)
        result = {"result": "read"}
    except CaffeFileError as error:
        result = {"result": "refused", "message": str(error)}
    except Exception as error:
        result = {"result": "wrong", "message": repr(error)[:300]}
    return {**result, "seconds": time.process_time() - start, "grown": max(0, peak() - before)}


def peak(reset: bool = False) -> int:
    """The largest size of this process in memory, in bytes, since the last reset; 0 where the system has none."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def _files(mode: str, arguments: list[str]) -> Iterator[tuple[str, bytes, str]]:
    """A label, the content and a file name each."""
    if mode == "hostile":
        yield from ((name, make(), name) for name, make in HOSTILE.items())
        return
    for name, make in SEEDS.items():
        data = make()
        for seed in range(*map(int, arguments)):
            yield f"{name} seed {seed}", scattered(data, random.Random(seed)), name


def main(mode: str, *arguments: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, make in SEEDS.items():  # what is imported and allocated once is no file's doing
            (Path(folder) / name).write_bytes(make())
            read(Path(folder) / name)
        gc.collect()
        gc.freeze()  # or each collection would walk all that torch has
        for label, content, name in _files(mode, list(arguments)):
            path = Path(folder) / name
            path.write_bytes(content)
            size = len(content)
            del content
            print(json.dumps({"file": label}), flush=True)  # the last one begun, should the process die
            print(json.dumps({"file": label, "size": size, **outcome(path)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
