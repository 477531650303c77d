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
    # Large tensors in pages of 2 MB: an iteration on a CPU takes and returns gigabytes, and the kernel handed them out
    # 4 KB at a time. PyTorch reads this at its first allocation.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    from repro.cli import run_command

    sys.exit(run_command())


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C. Importing takes seconds on a cold disk, and a KeyboardInterrupt there comes out as whatever the module at
    hand makes of it: an ImportError, a traceback, nothing. A verb imports before it begins, so there the process just
    ends."""
    at = frame
    while at is not None:
        if at.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"repro: interrupted\n")
            os._exit(128 + number)
        at = at.f_back
    signal.default_int_handler(number, frame)


if __name__ == "__main__":
    main()
