"""What ends a command with one line instead of a traceback, and how foreign text is put into a line."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{os.fspath(path)}: {error.strerror}, {expected} expected") from error
        raise InputError(f"{os.fspath(path)}: damaged ({reason}), {expected} expected") from error
