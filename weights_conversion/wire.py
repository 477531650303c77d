"""Walking a protobuf file without loading it, and the one thing in it that is large: blobs of floats.

The protobuf runtime would hold a weight file three times over (the bytes, its own copy, the arrays) and
says of a damaged one only that it is damaged. So the outer structure is walked here, field by field,
each length checked against what is left of the file; the small messages go to the schema's classes
and the packed floats are arrays on the mapped file itself, which must not change while they are in use.
"""

from __future__ import annotations

import io
import math
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from weights_conversion import caffe_pb2
from weights_conversion.errors import CaffeFileError
from weights_conversion.files import check_plain, other_kind

VARINT, I64, LEN, I32 = 0, 1, 2, 5
_FIXED_SIZE = {I64: 8, I32: 4}
_WIRE_NAMES = {VARINT: "a number", I64: "8 bytes", LEN: "a string or message", I32: "4 bytes"}

# The most fields that are walked in a file, and the most bytes that go to the protobuf runtime at once: far
# above any net (ResNet-101's has 6000 fields), and low enough that a file of nothing but two-byte fields ends in an
# error within a second, not in minutes of walking or in many times its size of memory.
_MAX_FIELDS = 50_000
_MAX_HEADER = 1 << 16

MAX_AXES = 32  # Caffe's kMaxBlobAxes
_MAX_DIM = 2**31 - 1  # Caffe counts in int

# BlobProto's fields, by number
_DATA, _DIFF, _DOUBLE_DATA, _DOUBLE_DIFF = 5, 6, 8, 9
_FLOATS: dict[int, np.dtype] = {_DATA: np.dtype("<f4"), _DOUBLE_DATA: np.dtype("<f8")}

_MessageT = TypeVar("_MessageT", bound=Message)


class Field(NamedTuple):
    """One field of a message: ``tag_at`` is where its tag stands, ``start`` to ``stop`` its payload."""

    number: int
    wire_type: int
    tag_at: int
    start: int
    stop: int


class Blob(NamedTuple):
    """Values float32; ``legacy``: the shape is the old fixed one (num, channels, height, width)."""

    values: np.ndarray
    legacy: bool


class WireFile:
    """A protobuf file open for reading. Every method raises ``CaffeFileError`` on what it cannot accept."""

    def __init__(self, file: io.BufferedReader, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.size = os.fstat(file.fileno()).st_size
        # copy-on-write: arrays made of it are the caller's own, and a page takes memory once it is touched
        self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if self.size else b""
        self.head = self._bytes[:512]
        self.doubles = 0  # blobs read so far that were stored as doubles
        self._walked = 0

    def error(self, what: str, reason: str) -> CaffeFileError:
        return CaffeFileError(f"{self.path}: {what}: {reason}" if what else f"{self.path}: {reason}")

    def check_binary(self, kind: str) -> None:
        """Name the commonest mistakes: an empty download, a web page, a prototxt."""
        if not self.head:
            raise self.error("", "an empty file")
        if self.is_text():
            raise self.error("", f"a text file, not a binary {kind}")

    def is_text(self) -> bool:
        return all(byte >= 32 or byte in b"\t\n\r\f" for byte in self.head)

    def fields(self, start: int, stop: int, what: str) -> Iterator[Field]:
        """Walk the message between two offsets. ``what`` names it in errors."""
        at = start
        while at < stop:
            self._walked += 1
            if self._walked > _MAX_FIELDS:
                raise self.error(what, f"more than {_MAX_FIELDS} fields in the file, at byte {at}")
            field = self._field_at(at, stop, what)
            yield field
            at = field.stop

    def _field_at(self, at: int, stop: int, what: str) -> Field:
        # A tag takes at most 5 bytes, a number or length at most 10.
        head = self.read(at, min(at + 15, stop))
        tag, used = _varint(head, 0)
        number, wire_type = tag >> 3, tag & 7
        if used == 0 or used > 5 or number == 0 or wire_type not in _WIRE_NAMES:
            raise self.error(
                what,
                f"no protobuf field at byte {at}"
                if what or at
                else "neither a file of Caffe's nor of another kind that is read "
                "(safetensors, PyTorch, Keras, ONNX, NumPy)",
            )
        start = at + used
        if wire_type in _FIXED_SIZE:
            end = start + _FIXED_SIZE[wire_type]
        else:
            value, after = _varint(head, used)
            if after == 0:
                raise self.error(what, f"field {number} at byte {at} breaks off")
            start = at + after
            end = start + value if wire_type == LEN else start
        if end > stop:
            raise self.error(
                what,
                f"field {number} at byte {at} should end at byte {end}, the data end at {stop} (cut off?)",
            )
        return Field(number, wire_type, at, start, end)

    def read(self, start: int, stop: int) -> bytes:
        return self._bytes[start:stop]

    def values(self, field: Field, dtype: np.dtype) -> np.ndarray:
        """The payload of a field as numbers, one axis, without a copy; its size must be a multiple of the dtype's."""
        count = (field.stop - field.start) // dtype.itemsize
        return np.frombuffer(self._bytes, dtype, count, field.start) if count else np.empty(0, dtype)

    def number(self, field: Field, what: str) -> int:
        """The value of a field that is a number."""
        self.expect(field, VARINT, what)
        raw = self.read(field.tag_at, field.stop)
        _, used = _varint(raw, 0)
        return _varint(raw, used)[0]

    def numbers(self, field: Field, what: str) -> list[int]:
        """The values of a field of repeated numbers: one, or several that are packed."""
        if field.wire_type == VARINT:
            return [self.number(field, what)]
        self.expect(field, LEN, what)
        if field.stop - field.start > 10 * MAX_AXES:
            raise self.error(what, f"{field.stop - field.start} bytes of numbers")
        raw, at, values = self.read(field.start, field.stop), 0, []
        while at < len(raw):
            value, at = _varint(raw, at)
            if not at:
                raise self.error(what, "a number breaks off")
            values.append(value)
        return values

    def header(self, kind: type[_MessageT], fields: list[Field], what: str) -> _MessageT:
        """Parse the given (small) fields of a message as ``kind``."""
        size = sum(field.stop - field.tag_at for field in fields)
        if size > _MAX_HEADER:
            raise self.error(what, f"{size} bytes of names and shapes")
        raw = b"".join(self.read(field.tag_at, field.stop) for field in fields)
        return self._parse(kind, raw, what)

    def _parse(self, kind: type[_MessageT], raw: bytes, what: str) -> _MessageT:
        try:
            return kind.FromString(raw)
        except DecodeError as error:
            raise self.error(what, f"not a valid {kind.__name__}") from error

    def text(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(what, f"a name is not UTF-8: {raw[:40]!r}") from error

    def name(self, field: Field, size: int, what: str) -> str:
        """The text of a field; ``size`` is that of all names of its layer so far."""
        if size > _MAX_HEADER:
            raise self.error(what, f"{size} bytes of names and shapes")
        return self.text(self.read(field.start, field.stop), what)

    def expect(self, field: Field, wire_type: int, what: str) -> None:
        if field.wire_type != wire_type:
            raise self.error(
                what,
                f"field {field.number} at byte {field.tag_at} is {_WIRE_NAMES[field.wire_type]}, "
                f"should be {_WIRE_NAMES[wire_type]}",
            )

    def blob(self, field: Field, what: str) -> Blob:
        """Read a BlobProto as float32. Doubles win over floats where a blob has both, as in Caffe."""
        self.expect(field, LEN, what)
        chunks: dict[int, list[Field]] = {_DATA: [], _DOUBLE_DATA: []}
        header = []
        for part in self.fields(field.start, field.stop, what):
            if part.number in _FLOATS:
                if part.wire_type != LEN:
                    return self._unpacked_blob(field, what)
                chunks[part.number].append(part)
            elif part.number not in (_DIFF, _DOUBLE_DIFF):
                header.append(part)
        message = self.header(caffe_pb2.BlobProto, header, what)
        number = _DOUBLE_DATA if any(part.stop > part.start for part in chunks[_DOUBLE_DATA]) else _DATA
        dtype = _FLOATS[number]
        self.doubles += number == _DOUBLE_DATA
        for part in chunks[number]:
            if (part.stop - part.start) % dtype.itemsize:
                raise self.error(
                    what,
                    f"{part.stop - part.start} bytes of {dtype.itemsize}-byte values at byte {part.start}",
                )
        count = sum(part.stop - part.start for part in chunks[number]) // dtype.itemsize
        shape, legacy = self._shape(message, count, what)
        parts = [self.values(part, dtype) for part in chunks[number]]
        values = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])
        with np.errstate(over="ignore"):  # a double beyond float32 becomes inf, as in Caffe
            return Blob(values.astype(np.float32, copy=False).reshape(shape), legacy)

    def _unpacked_blob(self, field: Field, what: str) -> Blob:
        """A blob whose values stand one by one, or in a mix: legal, seldom, and left to the runtime."""
        message = self._parse(caffe_pb2.BlobProto, self.read(field.start, field.stop), what)
        data = message.double_data or message.data
        self.doubles += bool(message.double_data)
        shape, legacy = self._shape(message, len(data), what)
        with np.errstate(over="ignore"):
            values = np.fromiter(data, np.float32, len(data))
        return Blob(values.reshape(shape), legacy)

    def _shape(self, message: caffe_pb2.BlobProto, count: int, what: str) -> tuple[tuple[int, ...], bool]:
        legacy = any(message.HasField(name) for name in ("num", "channels", "height", "width"))
        old_shape = (message.num, message.channels, message.height, message.width)
        shape: tuple[int, ...] = old_shape if legacy else tuple(message.shape.dim)
        if len(shape) > MAX_AXES or any(not 0 <= dim <= _MAX_DIM for dim in shape):
            raise self.error(what, f"impossible shape {_short(shape)}")
        if math.prod(shape) != count:
            raise self.error(what, f"shape {shape} needs {math.prod(shape)} values, the file has {count}")
        return shape, legacy


@contextmanager
def open_wire(path: str | os.PathLike[str]) -> Iterator[WireFile]:
    """Open a file for reading; what the system raises here and inside comes out as ``CaffeFileError``."""
    check_plain(path)
    try:
        with Path(path).open("rb") as file:
            wire = WireFile(file, path)
            if name := other_kind(wire.head):
                raise wire.error("", name)
            yield wire
    except OSError as error:
        raise CaffeFileError(f"{os.fspath(path)}: {error.strerror or error}") from error


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at ``at`` and the index after it; index 0 if there is no whole one of at most 64 bits."""
    value = 0
    for index in range(at, min(at + 10, len(data))):
        value |= (data[index] & 0x7F) << (7 * (index - at))
        if data[index] < 0x80:
            return value & (2**64 - 1), index + 1
    return 0, 0


def length_prefix(number: int, length: int) -> bytes:
    """Tag and length that open a string, message or packed field of ``length`` bytes."""
    out = bytearray()
    for value in (number << 3 | LEN, length):
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def blob_field(number: int, values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """A BlobProto field in two parts, so that the floats need no copy: what precedes them, and their bytes."""
    data = np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8)
    shape = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=values.shape)).SerializeToString()
    head = shape + length_prefix(_DATA, data.nbytes)
    return length_prefix(number, len(head) + data.nbytes) + head, data


def _short(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= 8 else f"({', '.join(map(str, shape[:8]))}, …) of {len(shape)} axes"
