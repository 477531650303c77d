"""Mutations that keep a file's outer form: what lies within its check sums, lengths and compression is changed.

A changed byte of a PNG, an archive or a protobuf mostly ends at the first check. Here members, chunks, fields and
opcodes are changed and everything around them is written anew, so that the readers behind those checks see it.
"""

from __future__ import annotations

import gzip
import io
import json
import pickletools
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

Mutator = Callable[[bytes, random.Random], bytes]

ODD = [
    *(b"null", b"[]", b"{}", b"-1", b"0", b"1e300", b"1e-300", b"inf", b"nan", b"NaN", b"9" * 5000),
    *(b"1" + b"0" * 30, b"true", b'""', b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 2000, b"{" * 100),
    *(b"&a [*a]", b"!!timestamp 9", b"*b", b"-" * 200, b"\r", b'"', b"'", b"..", b"/etc/passwd", b"\x1b[2J"),
    *(b"2147483648", b"18446744073709551616", b"<a>", b"&lt;", b"idna", b"utf-7", b"<!DOCTYPE a>"),
    *(b"a" * 70_000, b"~", b"? ", b"dim: []", b"${X}", "é".encode()),
]
_TOKEN = re.compile(rb"[A-Za-z_0-9.+-]+|\s+|.", re.DOTALL)
_NUMBERS = (0, 1, 2, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def text(data: bytes, rng: random.Random) -> bytes:
    """Tokens replaced, left out, doubled, swapped, or everything between two nested."""
    tokens = _TOKEN.findall(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not tokens:
            break
        at = rng.randrange(len(tokens))
        match rng.randrange(6):
            case 0 | 1:
                tokens[at] = rng.choice(ODD)
            case 2:
                del tokens[at : at + rng.choice((1, 2, 10))]
            case 3:
                tokens[at:at] = tokens[at : at + rng.choice((1, 5, 20))] * rng.choice((1, 3, 40))
            case 4:
                other = rng.randrange(len(tokens))
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case _:
                tokens[at] = rng.choice((b"[", b"{", b"<a>", b"(")) * rng.choice((1, 60, 3000)) + tokens[at]
    return b"".join(tokens)


def scattered(data: bytes, rng: random.Random) -> bytes:
    """Bytes and bits changed, removed, inserted, copied within, numbers of 8 bytes put in; sometimes cut short."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(content) or 1)
        match rng.randrange(6):
            case 0:
                content[at : at + 1] = rng.randbytes(1)
            case 1:
                content[at : at + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in content[at : at + 1])
            case 2:
                number = rng.choice((0, 1, 2**63, 2**64 - 1, 2**32 - 1, rng.randrange(len(data) or 1)))
                content[at : at + 8] = number.to_bytes(8, "little")
            case 3:
                del content[at : at + rng.randrange(1, 9)]
            case 4:
                content[at:at] = rng.randbytes(rng.randrange(1, 9))
            case _:
                source, length = rng.randrange(len(content) or 1), rng.choice((1, 8, 64, 512))
                content[at : at + length] = content[source : source + length]
    return bytes(content[: rng.randrange(len(content) + 1)] if rng.random() < 0.15 else content)


def lines_of_json(data: bytes, rng: random.Random) -> bytes:
    """Values of a JSON text replaced by values of other types, or left out."""
    odd: list[Any] = [
        None,
        [],
        {},
        -1,
        0,
        1e300,
        2**63,
        "",
        "a" * 3000,
        True,
        [[]],
        {"": {}},
        "\x1b[2J",
        "../a",
        1.5,
    ]
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        waiting = [content]
        while waiting:
            value = waiting.pop()
            keys = (
                list(value)
                if isinstance(value, dict)
                else range(len(value))
                if isinstance(value, list)
                else ()
            )
            places += [(value, key) for key in keys]
            waiting += [value[key] for key in keys]
        if not places:
            break
        value, key = rng.choice(places)
        if rng.random() < 0.25:
            del value[key]
        else:
            value[key] = rng.choice(odd)
    return json.dumps(content).encode()


# --- protobuf ---------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """Protobuf's base 128."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(data: bytes) -> list[tuple[int, int, Any]]:
    """Number, wire type and value of each field. Raises ValueError or IndexError where the bytes are no message."""
    found: list[tuple[int, int, Any]] = []
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _read_varint(data, at)
            found.append((number, kind, value))
            continue
        length = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            length, at = _read_varint(data, at)
        if not number or length is None or at + length > len(data):
            raise ValueError("no message")
        found.append((number, kind, data[at : at + length]))
        at += length
    return found


def _written(fields: list[tuple[int, int, Any]]) -> bytes:
    out = bytearray()
    for number, kind, value in fields:
        out += varint(number << 3 | kind)
        out += varint(value) if kind == 0 else (varint(len(value)) if kind == 2 else b"") + value
    return bytes(out)


def protobuf(data: bytes, rng: random.Random) -> bytes:
    """A field at some depth changed; the lengths around it are right again."""
    try:
        fields = _fields(data)
    except (ValueError, IndexError):
        return scattered(data, rng)
    if not fields:
        return _written([(rng.randrange(1, 200), 0, rng.choice(_NUMBERS))])
    at = rng.randrange(len(fields))
    number, kind, value = fields[at]
    if kind == 2 and len(value) > 1 and rng.random() < 0.8:
        fields[at] = number, kind, protobuf(value, rng)
        return _written(fields)
    match rng.randrange(6):
        case 0:
            del fields[at]
        case 1:
            fields[at:at] = [fields[at]] * rng.choice((1, 2, 50))
        case 2:
            fields[at] = rng.choice((1, 2, 5, 7, 100, number + 1)), kind, value
        case 3:
            kind = rng.choice((0, 1, 2, 5))
            value = (
                rng.choice(_NUMBERS) if kind == 0 else rng.randbytes({1: 8, 5: 4}.get(kind, rng.randrange(9)))
            )
            fields[at] = number, kind, value
        case 4:
            other = rng.randrange(len(fields))
            fields[at], fields[other] = fields[other], fields[at]
        case _:
            fields[at] = number, 0, rng.choice(_NUMBERS)
    return _written(fields)


# --- pickles ----------------------------------------------------------------------------------------------

_OPCODES = [
    *(b"}", b"]", b")", b"(", b"N", b"0", b"1", b"2", b"a", b"e", b"s", b"u", b"t", b"\x85", b"\x86", b"R", b"b"),
    *(b"\x81", b"\x89", b"K\xff", b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 8, b"X\x01\0\0\0a", b"U\x01a"),
    *(b"r\0\0\0\x10", b"j\0\0\0\x10", b"q\0", b"h\0", b"\x94", b"\x8f", b"\x90", b"\x91", b"\x93", b"Q"),
    *(b"G" + b"\xff" * 8, b"L" + b"9" * 5000 + b"L\n"),
    *(b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cos\nsystem\n"),
    *(b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n"),
    *(b"cbuiltins\nset\n", b"cbuiltins\nbytearray\n", b"\x95" + b"\xff" * 8, b"F1e999\n", b"I01\n"),
]  # fmt: skip


def pickled(data: bytes, rng: random.Random) -> bytes:
    """Opcodes left out, doubled, swapped, put in, or their arguments changed."""
    head = data[: data.index(b"\n") + 1] if data.startswith(b"\x93NUMPY") else b""
    parts: list[bytes] = []
    stream = io.BytesIO(data[len(head) :])
    try:
        while stream.tell() < len(data) - len(head):  # a file of torch.save before 1.6 is a row of pickles
            start = stream.tell()
            places = [place for _, _, place in pickletools.genops(stream)]
            ends = [*places[1:], stream.tell()]
            whole = stream.getvalue()
            parts += [whole[at:end] for at, end in zip(places, ends, strict=True)]
    except ValueError:
        parts.append(stream.getvalue()[start:])  # the values behind the pickles
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(parts))
        match rng.randrange(6):
            case 0:
                parts[at : at + rng.choice((1, 3))] = []
            case 1:
                parts[at:at] = parts[at : at + rng.choice((1, 4))] * rng.choice((1, 2, 200))
            case 2:
                parts[at] = rng.choice(_OPCODES)
            case 3:
                parts[at:at] = [rng.choice(_OPCODES)]
            case 4:
                other = rng.randrange(len(parts))
                parts[at], parts[other] = parts[other], parts[at]
            case _:
                parts[at] = parts[at][:1] + scattered(parts[at][1:], rng)
        if not parts:
            break
    return head + b"".join(parts)


# --- containers -------------------------------------------------------------------------------------------


def array(data: bytes, rng: random.Random) -> bytes:
    """The header of a ``.npy``, its length right again."""
    if b"'|O'" in data[:128] and rng.random() < 0.7:
        return pickled(data, rng)
    length = struct.unpack("<H", data[8:10])[0]
    header = text(data[10 : 10 + length].rstrip(), rng)[:60_000]
    return data[:8] + struct.pack("<H", len(header) + 1) + header + b"\n" + data[10 + length :]


def zipped(data: bytes, rng: random.Random) -> bytes:
    """A member of a zip changed, left out or named otherwise; check sums and the list of members are right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    if rng.random() < 0.5:  # the member with the structure
        at = next((index for index, (name, _) in enumerate(members) if name.endswith("data.pkl")), at)
    name, content = members[at]
    match rng.randrange(8):
        case 0:
            del members[at]
        case 1:
            members.append((rng.choice((name, f"../{name}", "/a", "archive/data.pkl", "a" * 300)), content))
        case 2:
            members[at] = text(name.encode("latin1"), rng).decode("latin1")[:60_000], content
        case _:
            change = pickled if name.endswith(".pkl") else array if name.endswith(".npy") else scattered
            members[at] = name, change(content, rng)
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in members:
            archive.writestr(name.replace("\0", "") or "a", content)
    return buffer.getvalue()


def gzipped(change: Mutator) -> Mutator:
    """The same of what is compressed."""
    return lambda data, rng: gzip.compress(change(gzip.decompress(data), rng), 1, mtime=0)


def tar(data: bytes, rng: random.Random) -> bytes:
    """A field of a member's header changed, with the right check sum; or the members themselves."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    headers = [at for at, block in enumerate(blocks) if block[257:262] == b"ustar"]
    at = rng.choice(headers)
    block = bytearray(blocks[at])
    first, length = rng.choice(
        ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155))
    )
    value = rng.choice(
        (*ODD, b"7" * 11, b"\x80" + b"\xff" * 11, b"L", b"K", b"x", b"g", b"2", b"5", b"S", b"../../a")
    )
    block[first : first + length] = value[:length].ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    blocks[at] = bytes(block)
    if at + 1 < len(blocks) and rng.random() < 0.3:
        blocks[at + 1] = text(blocks[at + 1].rstrip(b"\0"), rng)[:512].ljust(512, b"\0")
    return b"".join(blocks)


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header changed, its length right again."""
    length = struct.unpack("<Q", data[:8])[0]
    header = (lines_of_json if rng.random() < 0.6 else text)(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def png(data: bytes, rng: random.Random) -> bytes:
    """A chunk changed, left out, doubled or put in, with the right check sum; sometimes what the pixels unpack to."""
    chunks: list[tuple[bytes, bytes]] = []
    at = 8
    while at < len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    place = rng.randrange(len(chunks))
    kind, content = chunks[place]
    match rng.randrange(5):
        case 0:
            del chunks[place]
        case 1:
            chunks.insert(
                place,
                (
                    rng.choice((b"PLTE", b"tRNS", b"gAMA", b"eXIf", b"iTXt", b"zTXt", b"iCCP", b"acTL")),
                    rng.randbytes(rng.choice((0, 3, 30, 768))),
                ),
            )
        case 2 if kind == b"IDAT":
            chunks[place] = kind, zlib.compress(scattered(zlib.decompress(content), rng))
        case 3:
            chunks[0] = (
                b"IHDR",
                struct.pack(">II", rng.choice(_NUMBERS) & 0xFFFFFFFF, rng.choice(_NUMBERS) & 0xFFFFFFFF)
                + chunks[0][1][8:],
            )
        case _:
            chunks[place] = kind, scattered(content, rng)
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )  # fmt: skip


def matlab(data: bytes, rng: random.Random) -> bytes:
    """A MATLAB 5 file whose compressed element unpacks to something else."""
    kind, size = struct.unpack("<II", data[128:136])
    if kind != 15:
        return scattered(data, rng)
    content = scattered(zlib.decompress(data[136 : 136 + size]), rng)
    packed = zlib.compress(content)
    return data[:128] + struct.pack("<II", 15, len(packed)) + packed


def hdf5(data: bytes, rng: random.Random) -> bytes:
    """A dataset, group or attribute replaced by another that the library writes."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        match rng.randrange(8):
            case 0:
                del file[name]
            case 1:
                file.attrs[rng.choice(list(file.attrs) or ["a"])] = rng.choice(
                    ("é" * 1000, 2**40, [1, 2], [[1]], np.nan, b"\xff", "", np.zeros(0))
                )
            case 2:
                file.move(
                    name, rng.choice(("a", "data/b/0", "9" * 300, "-1", "é\x1b[2J", "a/b/c/d/e/f/g/h/i/j/k"))
                )
            case 3:
                del file[name]
                file[name] = rng.choice(
                    (h5py.SoftLink("/"), h5py.ExternalLink("/etc/passwd", "/"), file["/"])
                )
            case _:
                del file[name]
                values = rng.choice(_VALUES)
                packed = (
                    {"compression": "gzip"}
                    if isinstance(values, np.ndarray) and values.size > 1 and rng.random() < 0.3
                    else {}
                )
                file.create_dataset(name, data=values, **packed)
    return buffer.getvalue()


_VALUES: list[Any] = [
    *(np.zeros(0), np.zeros((0, 3), np.int16), np.float32(1), np.zeros((1,) * 30, np.int8), np.arange(7)),
    *(np.full((3, 3), np.nan), np.full(4, -1), np.full(4, 2**62), np.zeros(5, bool), np.zeros(5, complex)),
    *(np.zeros(3, "f2"), np.zeros(3, ">i8"), np.zeros(3, "u8") + 2**63, np.zeros(2, [("a", int)]), "text", b"\xff\xfe"),
    *(np.array([b"a", b"bc"]), h5py.Empty("f"), np.zeros(200_000, np.int8)),
]  # fmt: skip

MUTATORS: dict[str, Mutator] = {
    **dict.fromkeys(("json",), lines_of_json),
    **dict.fromkeys(("caffemodel", "solverstate", "onnx"), protobuf),
    **dict.fromkeys(("pickle", "pkl", "legacy.pth"), pickled),
    **dict.fromkeys(("zip.pth", "npz", "state"), zipped),
    "npy": array,
    "safetensors": safetensors,
    "png": png,
    "mat": matlab,
    "h5": hdf5,
    "pickle.gz": gzipped(pickled),
    "tar.gz": gzipped(tar),
}
TEXTS = {"json", "csv", "txt", "xml", "yaml", "prototxt"}


def mutated(name: str, data: bytes, seed: int, turn: int) -> bytes:
    """A mutation of the file ``name``: of four turns one of its bytes, the others of its structure where it has one."""
    rng = random.Random(seed)
    form = name.rpartition(".")[2]
    structure = next((MUTATORS[key] for key in (name, name.partition(".")[2], form) if key in MUTATORS), None)
    if turn % 4 == 0 or (structure is None and form not in TEXTS):
        return scattered(data, rng)
    if structure is None or (form == "json" and turn % 2):
        return text(data, rng)
    return structure(data, rng)
