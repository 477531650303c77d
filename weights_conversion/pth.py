"""Files of ``torch.save``, read with ``weights_only=True`` and with an eye on what they claim.

PyTorch's restricted loader runs no code of the file. It does trust sizes: storages are allocated as the pickle
says before a byte of them is read, a zip's members are inflated, ``bytearray`` may be called with any number.
So the pickles are looked through here first, without executing them: whom they import, and how much they claim.
"""

from __future__ import annotations

import io
import os
import pickletools
import struct
import zipfile
from typing import Any

import torch

from weights_conversion.errors import CaffeFileError, line_of, some
from weights_conversion.wire import WireFile, open_wire

_MOST_PICKLE, _MOST_OPCODES = 1 << 19, 100_000  # of structure: a ResNet-101's has 110 kB and 30,000
_MOST_DIRECTORY = 1 << 20  # of the zip: 90 bytes per tensor
_LEGACY_PICKLES = 5  # magic, protocol, system, content, storage keys; the values follow
_ITEM_SIZES = {"Half": 2, "BFloat16": 2, "Float": 4, "Double": 8, "Long": 8, "Int": 4, "Byte": 1}
_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_ADMITTED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch.nn.parameter Parameter",
    *(f"torch {name}Storage" for name in _ITEM_SIZES),
    # numbers of 8 bits: bytes, and the type beside them
    *("torch._utils _rebuild_tensor_v3", "torch.storage UntypedStorage"),
    *("torch float8_e4m3fn", "torch float8_e5m2"),
}


def read_pth(path: str | os.PathLike[str]) -> Any:
    """What ``torch.save`` wrote, on the CPU: tensors, strings, numbers, and dicts, lists and tuples of them.

    Today's zip form and the form before PyTorch 1.6. Tensors of a zip lie in the file, which must not change
    while they are in use. Raises ``CaffeFileError`` (a ``ValueError``) if the file cannot be opened, is damaged,
    imports anything but tensors, or claims more values than it holds.
    """
    with open_wire(path) as file:
        zipped = file.head.startswith(b"PK")
        if zipped:
            _check_zip(file)
        else:
            _check_legacy(file)
        try:
            content = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=zipped)
        except Exception as error:  # on damaged files: UnpicklingError, RuntimeError, EOFError, KeyError, …
            raise file.error("", f"damaged PyTorch file: {line_of(error, 200)}") from error
        _check_tensors(content, file)
        return content


def _check_tensors(content: object, file: WireFile) -> None:
    """By its strides a tensor may repeat a stored value any number of times; copies would be that large."""
    left, waiting, seen = file.size, [content], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            left -= value.numel() * value.element_size()
            value.requires_grad_(False)  # of parameters, which a state dict saved with keep_vars holds
            if left < 0:
                raise file.error("", f"a tensor of shape {tuple(value.shape)} is more than the file holds")
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)


def check_directory(file: WireFile) -> None:
    """Refuse a zip whose list of members would take much memory."""
    if _directory_size(file) > _MOST_DIRECTORY:
        raise file.error("", "a zip of more members than any net has tensors")


def _check_zip(file: WireFile) -> None:
    check_directory(file)
    try:
        with zipfile.ZipFile(file.path) as archive:
            members = archive.infolist()
            if other := _other_zip([member.filename for member in members]):
                raise file.error("", other)
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                    raise file.error(
                        f"member {member.filename!r}", "compressed or encrypted, PyTorch's are not"
                    )
                if member.file_size > file.size:
                    raise file.error(f"member {member.filename!r}", "is larger than the file")
            pickles = [member for member in members if member.filename.endswith("/data.pkl")]
            if pickles[0].file_size > _MOST_PICKLE:
                raise file.error(
                    "data.pkl",
                    f"{pickles[0].file_size} bytes, as arrays of NumPy take in it; tensors expected",
                )
            content = archive.read(pickles[0])
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, struct.error) as error:
        if isinstance(error, CaffeFileError):
            raise
        raise file.error("", f"damaged PyTorch file: {line_of(error, 200)}") from error
    _check_pickle(io.BytesIO(content), file)


def _other_zip(names: list[str]) -> str:
    """What a zip is that torch.save has not written; "" for one of its own, which has one data.pkl."""
    if "model.weights.h5" in names:
        return "an archive of Keras: unpack it first, its model.weights.h5 holds the weights"
    if any("/code/" in name for name in names):
        return "a TorchScript program: torch.save(torch.jit.load(FILE).state_dict(), NEW) makes a file of its weights"
    if sum(name.endswith("/data.pkl") for name in names) != 1:
        return f"a zip, but not one of torch.save: it has no data.pkl; it holds {some(names, 3) or 'nothing'}"
    return ""


def _directory_size(file: WireFile) -> int:
    """Bytes of the zip's list of members, which ``zipfile`` would read whole (APPNOTE 4.3.14 and 4.3.16)."""
    tail = file.read(max(0, file.size - (1 << 16) - 98), file.size)
    end, end64 = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    if end < 0 or len(tail) < end + 22:
        raise file.error("", "damaged: the zip's end is missing (cut off?)")
    size = int.from_bytes(tail[end + 12 : end + 16], "little")
    if size == 0xFFFFFFFF and end64 >= 0:
        size = int.from_bytes(tail[end64 + 40 : end64 + 48], "little")
    return size


def _check_legacy(file: WireFile) -> None:
    stream = io.BytesIO(file.read(0, min(file.size, _MOST_PICKLE)))
    for _ in range(_LEGACY_PICKLES):
        claimed = _check_pickle(stream, file)
        if claimed > file.size:
            raise file.error("", f"its storages claim {claimed} bytes, the file has {file.size}")


def _check_pickle(stream: io.BytesIO, file: WireFile) -> int:
    """Look through one pickle of PyTorch; the bytes that its storages claim, at the least that their types mean."""
    number: Any = 0
    texts = ["", ""]  # the last two: what STACK_GLOBAL imports
    values, smallest = 0, max(_ITEM_SIZES.values())
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MOST_OPCODES:
                raise file.error("", f"a pickle of more than {_MOST_OPCODES} opcodes")
            if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST"):
                if opcode.name != "GLOBAL" or argument not in _ADMITTED:
                    imported = str(argument or " ".join(texts)).replace(" ", ".")
                    how = (
                        "only tensors are read (weights_only=True), as torch.save(model.state_dict(), NEW) "
                        "writes them"
                    )
                    if imported.startswith("numpy."):
                        how = "NumPy's arrays are read from a .npz, as np.savez(NEW, **{'conv1_1.weight': …}) writes it"
                    raise file.error("", f"the pickle imports {imported[:80]}; {how}")
                is_bytes = argument == "torch.storage UntypedStorage"
                size = (
                    1
                    if is_bytes
                    else _ITEM_SIZES.get(argument.removeprefix("torch ").removesuffix("Storage"))
                )
                smallest = min(smallest, size or smallest)
            elif isinstance(argument, str):
                texts = [texts[1], argument]
            elif opcode.name in _INTEGERS:
                number = argument
            elif opcode.name == "BINPERSID":
                if not 0 <= number <= file.size:
                    raise file.error("", f"a storage of {number} values is more than the file holds")
                values += number
    except CaffeFileError:
        raise
    except Exception as error:  # made-up opcodes raise ValueError, UnicodeDecodeError, OverflowError, …
        raise file.error("", f"damaged PyTorch file: {line_of(error, 200)}") from error
    return values * smallest
