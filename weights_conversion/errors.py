"""What is raised for a file that cannot be read, or does not fit the model."""

from repro.errors import InputError


class CaffeFileError(InputError):
    """A damaged, unreadable or unfitting weight file, solver state or prototxt.

    The message is one line: the file, the place in it (layer and blob, byte offset, or line and column)
    and the reason.
    """
