"""The command ``repro``, also ``python -m repro``."""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line."""
    # OpenMP's threads spin while they wait. Beside loader workers or other jobs on the same cores that makes small
    # nets several times slower (docs/performance.md); it is read once, when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Importing takes seconds on a cold disk. A KeyboardInterrupt there comes out as whatever the module at hand makes
    # of it: an ImportError, a traceback, nothing. There is nothing to tidy up yet, so the process just ends.
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from repro.cli import run_command

    signal.signal(signal.SIGINT, before)
    sys.exit(run_command())


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"repro: interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
