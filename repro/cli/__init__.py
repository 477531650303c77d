"""The command line: each verb parses, calls one function and prints. Each module holds the verbs of one subject."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from repro import distributed
from repro.cli import data, experiments, masks, seeds, weights  # noqa: F401 - importing them registers their verbs
from repro.cli.shared import app
from repro.errors import InputError, StoppedError, printable


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; what goes wrong is one line on standard error.

    2 for bad input, 1 for a run that had to stop, 130 and 143 after SIGINT and SIGTERM.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    with _terminable(), distributed.joined():
        try:
            app(arguments, prog_name="repro")
        except SystemExit as stop:  # how typer ends every command, usage errors with status 2 among them
            status = int(stop.code or 0)
            if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                _complain("interrupted; the same command goes on from what is done")
            return status
        except InputError as error:
            _complain(str(error))
            return 2
        except StoppedError as error:
            _complain(str(error))
            return error.status
        except OSError as error:
            _complain(f"{error.filename or ''}: {error.strerror or error}")
            return 2
    return 0


class _OneLine(logging.Formatter):
    """A record is one line: what is foreign in it is escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(record.getMessage())


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does: what is being written is finished or removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _complain(line: str) -> None:
    who = "" if distributed.is_first() else f" (rank {distributed.rank()})"
    print(f"repro{who}: {printable(line)}", file=sys.stderr)
