"""Prototxts, of nets and of solvers, of any fork: read without a schema.

The protobuf runtime's own text parser needs every field declared or drops it, and each fork of Caffe has fields
of its own. So this follows protobuf's text format specification, and leaves the meaning of fields to the caller.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Mapping
from typing import NamedTuple, NoReturn, TypeAlias

from weights_conversion.errors import CaffeFileError
from weights_conversion.files import read_input
from weights_conversion.kinds import file_kind

_MAX_BYTES = 4 << 20  # the largest published nets have some 100 kB
_MAX_VALUES = 50_000  # and 13,000 values; a file of nothing but "a{}" ends in an error within a second
_MAX_DEPTH = 64


class Identifier(str):
    """An unquoted word, such as the enum value ``MAX``; equal to the string of the same letters."""

    __slots__ = ()


class Message(dict[str, list["Value"]]):
    """A message: every field's values in the file's order, in a list even where there is one.

    ``net["layer"][0]["name"]`` is ``["conv1_1"]``; ``net.layers[0].one("name")`` is ``"conv1_1"``.
    """

    def one(self, name: str, default: Value | None = None) -> Value | None:
        """The only value of a field, or ``default`` without the field; ``ValueError`` if it has several."""
        values = self.get(name, [])
        if len(values) > 1:
            raise ValueError(f"field {name!r} occurs {len(values)} times")
        return values[0] if values else default

    @property
    def layers(self) -> list[Message]:
        """A net's layers, in the current layout (``layer``) or the old one (``layers``)."""
        return [value for value in self.get("layer", self.get("layers", [])) if isinstance(value, Message)]


# bool, int and float as written; an Identifier is a str
Value: TypeAlias = str | float | Message


def read_prototxt(path: str | os.PathLike[str], variables: Mapping[str, str] | None = None) -> Message:
    """Read a prototxt of a net or a solver; ``variables`` are what ``${NAME}`` in a template stands for.

    Values become ``str`` (quoted), ``Identifier`` (unquoted), ``bool`` (``true``, ``false``), ``int``, ``float``
    or ``Message``. Raises ``CaffeFileError`` (a ``ValueError``) with line and column if the text is not
    well-formed, nests deeper than 64 messages, or has no field at all.
    """
    try:
        raw = read_input(path, _MAX_BYTES + 1)
    except OSError as error:
        raise CaffeFileError(f"{os.fspath(path)}: {error.strerror or error}") from error
    if len(raw) > _MAX_BYTES:
        raise CaffeFileError(f"{os.fspath(path)}: more than {_MAX_BYTES} bytes: not a prototxt")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if os.path.isfile(path) and not utf16 and (kind := file_kind(path)) != "prototxt":
            raise CaffeFileError(
                f"{os.fspath(path)}: a file of the kind {kind}, a prototxt expected in its place"
            ) from error
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        place = f"line {line}, column {column}"
        raise CaffeFileError(f"{os.fspath(path)}: {place}: not UTF-8 text") from error
    return parse_prototxt(_substituted(text, variables or {}, os.fspath(path)), os.fspath(path))


def _substituted(text: str, variables: Mapping[str, str], path: str) -> str:
    """The text with a value in place of each ``${NAME}``, as DeepLab's scripts fill their templates."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            line = text.count("\n", 0, match.start()) + 1
            raise CaffeFileError(
                f"{path}: line {line}: {match[0]} has no value; give one with --set {match[1]}=VALUE"
            )
        return variables[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)


def parse_prototxt(text: str, where: str) -> Message:
    """A prototxt's text; ``where`` stands for the file in messages. Values and errors as for `read_prototxt`."""
    return _Parser(text, where).parse()


# Every repetition is possessive (*+, ++): on text that does not match, giving characters back one by one
# would take exponential time.
_BLANK = re.compile(r"(?:[ \t\r\n\f\v]++|#[^\n]*+)*+")
_TOKEN = re.compile(
    r"""(?P<name> [A-Za-z_][A-Za-z0-9_]*+ )
      | (?P<number>
            (?: 0[xX][0-9a-fA-F]++ | (?: \d++(?:\.\d*+)? | \.\d++ ) (?: [eE][+-]?\d++ )? [fF]? ) (?![\w.])
        )
      | (?P<string> "(?:[^"\\\n]|\\[^\n])*+" | '(?:[^'\\\n]|\\[^\n])*+' )
      | (?P<mark> [{}<>\[\]:;,-] )
      | (?P<end> \Z )""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(
    rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL
)
_LETTERS = dict(zip(b"abfnrtv\\'\"?", b"\a\b\f\n\r\t\v\\'\"?", strict=True))
_WORDS: dict[str, float] = {"true": True, "True": True, "false": False, "False": False}
_FLOAT_WORDS = ("inf", "infinity", "nan")
_CLOSING = {"{": "}", "<": ">"}


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Parser:
    """Recursive descent with one token of look-ahead, ``self._next``."""

    def __init__(self, text: str, path: str) -> None:
        self._text = text
        self._path = path
        self._position = 0
        self._values = 0
        self._next = self._scan()

    def parse(self) -> Message:
        message = self._fields(closing="", depth=0)
        if not message:
            raise CaffeFileError(f"{self._path}: no fields: not a prototxt")
        return message

    def _fail(self, at: int, reason: str) -> NoReturn:
        line = self._text.count("\n", 0, at) + 1
        column = at - self._text.rfind("\n", 0, at)
        raise CaffeFileError(f"{self._path}: line {line}, column {column}: {reason}")

    def _scan(self) -> _Token:
        blank = _BLANK.match(self._text, self._position)
        at = blank.end() if blank else self._position
        match = _TOKEN.match(self._text, at)
        if match is None:
            what = "string without end" if self._text[at] in "\"'" else "unexpected"
            self._fail(at, f"{what}: {self._text[at : at + 20].splitlines()[0]!r}")
        self._position = match.end()
        kind = match.lastgroup or ""
        return _Token(kind, match[0], at)

    def _take(self) -> _Token:
        token = self._next
        self._next = self._scan()
        return token

    def _at_mark(self, marks: str) -> bool:
        return self._next.kind == "mark" and self._next.text in marks

    def _fields(self, closing: str, depth: int) -> Message:
        """Fields up to the mark ``closing``, or to the end of the file where it is empty."""
        message = Message()
        while True:
            token = self._take()
            if token.kind in ("mark", "end") and token.text == closing:
                return message
            if token.kind != "name":
                found = repr(token.text) if token.text else "the end of the file"
                self._fail(
                    token.at, f"expected a field name{f' or {closing!r}' * bool(closing)}, found {found}"
                )
            if values := self._field(depth):  # "field: []" is no value at all
                message.setdefault(token.text, []).extend(values)
            if self._at_mark(",;"):
                self._take()

    def _field(self, depth: int) -> list[Value]:
        colon = self._at_mark(":")
        if colon:
            self._take()
        if not self._at_mark("["):
            return [self._value(colon, depth)]
        self._take()
        values: list[Value] = []
        while not self._at_mark("]"):
            if values:
                if not self._at_mark(","):
                    self._fail(self._next.at, "expected ',' or ']'")
                self._take()
            values.append(self._value(colon, depth))
        self._take()
        return values

    def _value(self, colon: bool, depth: int) -> Value:
        token = self._take()
        self._count(token)
        if token.kind == "mark" and token.text in _CLOSING:
            if depth >= _MAX_DEPTH:
                self._fail(token.at, f"messages nest deeper than {_MAX_DEPTH}")
            return self._fields(_CLOSING[token.text], depth + 1)
        if not colon:
            self._fail(token.at, f"expected ':' before {token.text!r}")
        if token.kind == "string":
            return self._string(token)
        negative = token.kind == "mark" and token.text == "-"
        if negative:
            token = self._take()
        if token.kind == "number":
            return self._number(token, negative)
        if token.kind == "name" and token.text.lower() in _FLOAT_WORDS:
            return -float(token.text) if negative else float(token.text)
        if token.kind != "name" or negative:
            self._fail(
                token.at, f"expected a value, found {token.text!r}" if token.text else "the file ends here"
            )
        return _WORDS.get(token.text, Identifier(token.text))

    def _count(self, token: _Token) -> None:
        self._values += 1
        if self._values > _MAX_VALUES:
            self._fail(token.at, f"more than {_MAX_VALUES} values")

    def _number(self, token: _Token, negative: bool) -> float:
        digits = token.text
        sign = -1 if negative else 1
        if digits[:2].lower() != "0x" and not digits.isdigit():
            return sign * float(digits.rstrip("fF"))
        base = 16 if digits[1:2] in ("x", "X") else 8 if digits[0] == "0" else 10
        # 64 bits are at most 22 octal digits, and longer strings would only cost time
        try:
            value = sign * int(digits, base) if len(digits) <= 24 else 1 << 64
        except ValueError:
            self._fail(token.at, f"{digits} is no octal number")
        if not -(1 << 63) <= value < 1 << 64:
            self._fail(token.at, f"{digits[:40]} is beyond 64 bits")
        return value

    def _string(self, token: _Token) -> str:
        parts = [self._unescaped(token)]
        while self._next.kind == "string":  # neighbouring strings are one
            self._count(self._next)
            parts.append(self._unescaped(self._take()))
        try:
            return b"".join(parts).decode("utf-8")
        except UnicodeDecodeError:
            self._fail(token.at, "the string is not UTF-8")

    def _unescaped(self, token: _Token) -> bytes:
        def replace(match: re.Match[bytes]) -> bytes:
            octal, hexadecimal, short, long, letter = match.groups()
            if octal or hexadecimal:
                return bytes([int(octal, 8) if octal else int(hexadecimal, 16)])
            if short or long:
                return chr(int(short or long, 16)).encode()
            return bytes([_LETTERS[letter[0]]])

        try:
            return _ESCAPE.sub(replace, token.text[1:-1].encode())
        except (KeyError, ValueError, OverflowError):
            self._fail(token.at, "an escape that means no character")
