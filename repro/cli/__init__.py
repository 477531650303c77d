"""The command line: each verb parses, calls one function and prints. Each module holds the verbs of one subject."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from repro import distributed
from repro.cli import (  # noqa: F401 - importing them registers their verbs
    check,
    data,
    experiments,
    masks,
    seeds,
    weights,
)
from repro.cli.shared import app
from repro.errors import InputError, StoppedError, nearest, printable


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; what goes wrong is one line on standard error.

    2 for bad input, 1 for a run that had to stop, 130 and 143 after SIGINT and SIGTERM. An error that no reader has
    named is a bug: its line begins with "internal error", the status is 2, as input most often brings it out.
    ``--debug`` before the verb keeps the tracebacks.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments[:1]
    with _terminable(), distributed.joined():
        try:
            # not standalone, where typer prints usage errors itself, and what they quote as it is
            return _ended(int(_parser()(arguments, prog_name="repro", standalone_mode=False) or 0))
        except SystemExit as stop:  # of a signal's handler, and of --help
            return _ended(int(stop.code or 0))
        except (KeyboardInterrupt, typer.Abort):
            return _ended(128 + signal.SIGINT)
        except Exception as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # typer gives its errors no public name
                print(error, file=sys.stderr)
                return 2
            if debug and not hasattr(error, "ctx"):  # a usage error quotes the arguments as they are
                traceback.print_exc()
            line, status = _told(error)
            _complain(line)
            return status


@functools.cache
def _parser() -> Callable[..., Any]:
    """Made once a process: reading every verb's signature takes longer than most verbs' own work on small input."""
    return typer.main.get_command(app)


def _ended(status: int) -> int:
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        _complain("interrupted; the same command resumes from what is done")
    return status


class _OneLine(logging.Formatter):
    """A record is one line: what is foreign in it is escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(record.getMessage())


def _told(error: Exception) -> tuple[str, int]:
    """The line and the exit status for an error."""
    match error:
        case InputError():
            return str(error), 2
        case StoppedError():
            return str(error), error.status
        case OSError():
            return f"{error.filename or _file_at_hand(error)}: {error.strerror or error}", 2
    if context := getattr(error, "ctx", None):  # the parser's: a verb, option or value that is none
        return f"{_misused(error)}; {context.command_path} --help shows what there is", 2
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, ValueError) and "null byte" in reason:
        return f"{_file_at_hand(error)!r}: a path with a zero byte, which no file can have", 2
    steps = traceback.extract_tb(error.__traceback__)
    ours = [
        step for step in steps if "repro" in step.filename or "weights_conversion" in step.filename
    ] or steps
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    file = _file_at_hand(error)
    return (
        f"{f'{file}: ' if file else ''}internal error: {type(error).__name__}: {reason} (in {place}); "
        "repro --debug … shows all of it; please report it"
    ), 2


def _misused(error: Exception) -> str:
    """The parser's message, with what was meant where a setting came as an option."""
    option = getattr(error, "option_name", "")
    if not option:
        return " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    from repro.config import Config, keys_like

    context = error.ctx  # type: ignore[attr-defined]
    name = _bare(option)
    options = {_bare(other): other for other in getattr(error, "possibilities", None) or ()}
    keys = keys_like(Config, name)
    takes_settings = any(given.name == "overrides" for given in context.command.params)
    lasts = [key.split(".")[-1] for key in keys] if takes_settings else []
    near = nearest(name.split(".")[-1], [*options, *lasts])
    if near in lasts and near not in options:
        return (
            f"No such option: {option}; a setting is given as {' or '.join(f'{key}=VALUE' for key in keys)}"
        )
    verbs = getattr(context.command, "commands", {}).values()
    if any(option in parameter.opts for verb in verbs for parameter in verb.params):
        return f"{option}: goes behind the verb, as in {context.command_path} VERB {option}"
    return f"No such option: {option}" + (f"; did you mean {options[near]!r}?" if near else "")


def _bare(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _file_at_hand(error: Exception) -> str:
    """The file that was being read, as far as the innermost functions have one under the name of ``path``."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = frame.f_locals.get("path")
        if isinstance(path, str | os.PathLike):
            return os.fspath(path)
    return ""


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
