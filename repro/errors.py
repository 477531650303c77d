"""What ends a command with one line instead of a traceback."""


class InputError(ValueError):
    """Bad input: a file, key or value that is not what was expected.

    The message is one line that names what, where, and what was expected. The command line prints it
    and exits with status 2; library callers may catch it as a ``ValueError``.
    """


class StoppedError(RuntimeError):
    """A run that had to stop though its input is good: a signal, a process of it that died.

    The message is one line that says why and how to go on. The command line prints it and exits with ``status``:
    128 plus the signal's number after a signal, else 1.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
