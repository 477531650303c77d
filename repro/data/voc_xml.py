"""XML annotations in whatever encoding people's tools have written them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

from defusedxml import ElementTree

from repro.errors import InputError, damaged
from weights_conversion.files import check_plain

_MOST_BYTES = 4 << 20  # an annotation of VOC has one or two thousand
_DECLARED = re.compile(rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
# What expat does not read itself. Supersets stand for their parts: GB2312 is what files say that hold GBK.
_DECODED = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
_FAMILIES = re.compile(
    r"(gb18030|big5|shift_jis|euc_|cp|iso8859|iso2022_|koi8|mac_|johab|hz|tis_620|utf_(16|32))"
)


def read_xml(path: Path) -> Any:
    """The root element of an XML file, entities refused.

    The declared encoding is any text encoding that Python knows: GB2312, Big5, Shift_JIS and EUC-KR, say.
    Raises InputError naming the file: it cannot be read, is larger than 4 MiB, is no XML, or declares an encoding that
    is unknown or not its own.
    """
    expected = "an annotation of VOC"
    check_plain(path)
    with damaged(path, expected), path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise InputError(f"{path}: more than {_MOST_BYTES} bytes, {expected} expected")
    text: bytes | str = data
    if declared := _DECLARED.match(data.lstrip()):
        text = _decoded(data, declared[1].decode("ascii"), path)
    with damaged(path, expected):
        return ElementTree.fromstring(text)


def _decoded(data: bytes, name: str, path: Path) -> bytes | str:
    """Text where expat cannot read the encoding itself; its declaration does not count then."""
    try:
        known = codecs.lookup(name).name.replace("-", "_")
    except LookupError:
        raise InputError(
            f"{path}: encoding {name!r} is unknown, XML in UTF-8 or a known encoding expected"
        ) from None
    if known in ("utf_8", "ascii", "iso8859_1"):
        return data
    encoding = _DECODED.get(known, known)
    if not _FAMILIES.match(encoding):
        raise InputError(f"{path}: encoding {name!r} is none of XML's, UTF-8 expected")
    with damaged(path, f"text in {name}"):
        return data.decode(encoding)
