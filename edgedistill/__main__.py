"""`edgedistill`, `python -m edgedistill` and `torchrun -m edgedistill`: the command line as a program."""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def main() -> None:
    """Run the command line; after a signal exit at once, without waiting for threads that are still at work."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # until the command line handles it: nothing has begun yet, and half an import is no traceback to show
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from edgedistill import cli
    from edgedistill.run import interrupts

    try:
        cli.main()
    finally:
        code = interrupts.exit_code()
        if code is not None:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(code)


if __name__ == "__main__":
    main()
