"""What ends a command with one line instead of a traceback. Bad input's class lies beside the readers of files."""

from __future__ import annotations

from weights_conversion.errors import (
    InputError,
    chosen,
    damaged,
    hint,
    line_of,
    meant,
    nearest,
    printable,
    some,
)


class StoppedError(RuntimeError):
    """A run that had to stop though its input is good: a signal, a process of it that died.

    The message is one line that says why, and what to do next. The command line prints it and exits with ``status``:
    128 plus the signal's number after a signal, else 1.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(printable(message))
        self.status = status


__all__ = [
    "InputError",
    "StoppedError",
    "chosen",
    "damaged",
    "hint",
    "line_of",
    "meant",
    "nearest",
    "printable",
    "some",
]
