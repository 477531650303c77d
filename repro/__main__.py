"""The command ``repro``, also ``python -m repro``."""

import os
import sys


def main() -> None:
    """Run the command line."""
    # OpenMP's threads spin while they wait. Beside loader workers or other jobs on the same cores that makes small
    # nets several times slower (docs/performance.md); it is read once, when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from repro.cli import run_command
    except KeyboardInterrupt:  # seconds, on a cold disk
        print("repro: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(run_command())


if __name__ == "__main__":
    main()
