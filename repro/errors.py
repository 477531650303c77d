"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """Bad input: a file, key or value that is not what was expected.

    The message is one line that names what, where, and what was expected. The command line prints it
    and exits with status 2; library callers may catch it as a ``ValueError``.
    """
