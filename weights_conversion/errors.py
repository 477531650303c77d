"""What ends a command with one line instead of a traceback, and how foreign text is put into a line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def printable(text: object) -> str:
    r"""``text`` as one line that a terminal shows as it is.

    What is not printable is escaped as Python would: control characters (a line break, the ESC of a terminal's
    commands), marks that turn the direction of writing, halves of characters. What file names and contents say can
    then neither move the cursor nor begin a line of its own. Applied twice it changes nothing more.

    >>> printable("a\x1b[2Jb\nrepro: all is well")
    'a\\x1b[2Jb\\nrepro: all is well'
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )


_LONGEST = 1200  # letters of a message: a name or a value in it may have megabytes


class InputError(ValueError):
    """Bad input: a file, key or value that is not what was expected.

    The message is one line that names what, where, and what was expected. The command line prints it
    and exits with status 2; library callers may catch it as a ``ValueError``. Foreign text in it is escaped
    (`printable`).
    """

    def __init__(self, message: object) -> None:
        text = printable(message)
        super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 300]} … {text[-280:]}")


class CaffeFileError(InputError):
    """A damaged, unreadable or unfitting weight file, solver state or prototxt.

    The message is one line: the file, the place in it (layer and blob, byte offset, or line and column)
    and the reason.
    """


def hint(value: object, names: Iterable[str]) -> str:
    """The end of a message about a name that is none of ``names``: which of them was meant; "" if that cannot be told.

    >>> hint("Trian", ["train", "test"]), hint("x", ["train", "test"])
    ("; did you mean 'train'?", '')
    """
    near = nearest(value, names)
    return f"; did you mean {near!r}?" if near else ""


def nearest(value: object, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of ``names`` that is meant by ``value``, whatever its case; None where none is near.

    >>> nearest("Trian", ["train", "test"]), nearest("x", ["train", "test"])
    ('train', None)
    """
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(value).lower(), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def meant(value: object, names: Iterable[str]) -> str:
    """The names that were expected in place of ``value``, and the nearest.

    >>> meant("gpu", ["cpu", "cuda"])
    "expected one of cpu, cuda; did you mean 'cpu'?"
    """
    names = list(names)
    return f"expected one of {', '.join(names)}{hint(value, names)}"


def some(names: Iterable[object], most: int = 6) -> str:
    """Names with commas between, those beyond ``most`` as a number.

    >>> some("abcd", 2), some("ab", 2)
    ('a, b and 2 more', 'a, b')
    """
    shown = [str(name) for name in names]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def chosen(what: str, value: str, names: Iterable[str]) -> str:
    """``value`` if it is one of ``names``. Raises InputError naming ``what`` and the name that was meant."""
    names = list(names)
    if value not in names:
        raise InputError(f"{what} {value!r}: {meant(value, names)}")
    return value


def line_of(error: BaseException, most: int = 300) -> str:
    """What an exception says, as one line; its type where it says nothing.

    >>> line_of(ValueError("two\\nlines")), line_of(KeyError())
    ('two lines', 'KeyError')
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


@contextmanager
def damaged(path: str | os.PathLike[str], expected: str) -> Iterator[None]:
    """Turn whatever a library raises in the block over the foreign file ``path`` into an `InputError`.

    Libraries raise more over damaged files than they document: struct.error, IndexError, zlib.error, OverflowError,
    RecursionError, MemoryError. So the block should hold the library's call, and nothing of ours.

    >>> with damaged("a.json", "a table"):
    ...     [].pop()
    Traceback (most recent call last):
    weights_conversion.errors.InputError: a.json: damaged (pop from empty list), a table expected
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{os.fspath(path)}: {error.strerror}, {expected} expected") from error
        raise InputError(f"{os.fspath(path)}: damaged ({line_of(error)}), {expected} expected") from error
